"""What is read of metrics.jsonl: every line once, as it grows, and no sense made of what makes none."""

import json
import math

import pytest

from tests.unit.report.runs import step, write_run
from trainer.report.folder import read_run
from trainer.report.history import MOST_SAMPLES, History
from trainer.report.parity import compare, read_steps


def test_what_is_appended_is_read_once_and_a_torn_line_when_it_is_whole(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [json.dumps(step(number, loss=number / 10)).encode() + b"\n" for number in range(1, 6)]
    history = History(file)
    file.write_bytes(lines[0] + lines[1] + lines[2][:40])
    history.refresh()
    assert history.num_steps == 2 and history.last["step"] == 2
    file.write_bytes(b"".join(lines))
    history.refresh()
    history.refresh()
    assert (history.num_steps, history.tokens, history.seconds, history.unread) == (5, 500, 10.0, 0)
    assert history.train.curve("loss").mean.tolist() == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert history.train.curve("seconds.rest").mean.tolist() == pytest.approx([0.25] * 5)


def test_lines_that_make_no_sense_are_passed_over(tmp_path):
    strange = [
        b"",
        b"\xff\xfe",
        b"[1]",
        b"null",
        b'{"kind":"train"}',
        b'{"kind":7,"step":1}',
        b'{"kind":"train","step":true}',
        b"[" * 100000,
    ]
    strange += [b'{"kind":"train","step":-1}', b'{"kind":"train","step":1' + b"0" * 400 + b"}"]
    good = [step(1), step(2, loss="high", seconds=3, tokens_per_second=0), {"kind": "weather", "step": 2}, {"kind": "train", "step": 3}]
    good += [
        {"kind": "evaluate", "step": 3, "loss": 10**400, "examples": [7, {"written": 5}]},
        {"kind": "evaluate", "step": 3, "examples": True},
        {"kind": "ranks", "step": 3},
    ]
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"\n".join([*strange, *(json.dumps(line).encode() for line in good)]) + b"\n")
    history = History(file)
    history.refresh()
    assert history.unread == len(strange)
    assert history.num_steps == 3 and history.ranks == {"kind": "ranks", "step": 3} and not history.held_out
    losses = history.train.curve("loss").mean.tolist()
    assert losses[0] == 2.5 and all(map(math.isnan, losses[1:]))
    assert read_steps(file).steps.tolist() == [1, 2, 3]


def test_samples_are_spread_over_the_run_and_end_with_the_last(tmp_path):
    lines = [{"kind": "sample", "step": number, "prompt": "", "text": f"text {number}"} for number in range(1, 100)]
    run = read_run(write_run(tmp_path / "run", lines))
    steps = [written.step for written in run.history.samples.newest_first()]
    assert steps[0] == 99 and steps[-1] == 1 and 8 <= len(steps) <= MOST_SAMPLES + 1
    assert len({after - before for before, after in zip(steps[:0:-1], steps[-2:0:-1], strict=False)}) == 1


def test_a_run_alone_with_its_metrics_can_be_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(step(1)) + "\n")
    run = read_run(tmp_path)
    assert run.state[0] == "ended without a word" and run.layout == "? x ?" and run.config == {}
    for name in ("config.yaml", "passport.json", "exit.json", "sessions.jsonl"):
        (tmp_path / name).write_text("{nonsense: [")
    assert read_run(tmp_path).config == {}
    with pytest.raises(FileNotFoundError):
        read_run(tmp_path / "elsewhere")


def test_runs_are_compared_at_every_step(tmp_path):
    first = write_run(tmp_path / "a", [step(number, loss=2.0) for number in range(1, 11)])
    apart = {4: 2.0 * (1 + 1e-7), 7: 2.0 * (1 + 3e-5), 8: 2.0 * (1 + 2e-5)}
    other = write_run(tmp_path / "b", [step(number, loss=apart.get(number, 2.0)) for number in range(3, 13)])
    steps = {name: read_steps(folder / "metrics.jsonl") for name, folder in (("a", first), ("b", other))}
    parity = compare(steps["a"], steps["b"])
    assert (parity.common, parity.parts_at, parity.exceeds_at, parity.other_samples) == (8, 4, 7, (0, None))
    assert parity.largest == (pytest.approx(3e-5, rel=1e-6), 7)
    assert parity.differences.curve("difference").high[4] == parity.largest[0]
    assert compare(steps["a"], steps["a"]).verdict == "the same, bit by bit"
    assert "from step 7 on" in parity.verdict
    seen = write_run(
        tmp_path / "c", [step(number, loss=2.0, samples="beef" if number > 5 else f"{number:016x}") for number in range(1, 11)]
    )
    assert compare(steps["a"], read_steps(seen / "metrics.jsonl")).other_samples == (5, 6)
    lost = write_run(tmp_path / "d", [step(1, loss=math.nan), step(2, loss=2.0)])
    assert compare(steps["a"], read_steps(lost / "metrics.jsonl")).largest == (math.inf, 1)
    assert compare(steps["a"], read_steps(write_run(tmp_path / "e", []) / "metrics.jsonl")).verdict == "no step in common"
