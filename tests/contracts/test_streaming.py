"""Contract Order, where a set is read while training: fixed for a number of data ranks, resumed by state to the bit, refused elsewhere."""

import contextlib
import io
import json
import random
import re

import pytest

from tests.contracts.tasks import layout
from tests.faults.door import Guests
from tests.faults.test_kill import kill_until_done
from trainer.data.tokenizer import train_tokenizer
from trainer.testing import assert_same_curve, last_wins, run_ranks, train_curve, train_here

BAD = (66, 76, 106, 116)
FORMS = {
    "packed": [],
    "padded": ["data.packing=false"],
    "masked": ["model=bert_tiny", "objective=masked_lm", "data.packing=false", "model.dropout=0.1"],
}


@pytest.fixture(scope="module")
def stream(tiny, tiny_data, corpus_folder, tmp_path_factory) -> list[str]:
    """Overrides of a run over three files of paragraphs, some of which are bad, that sees them more than once."""
    folder = tmp_path_factory.mktemp("stream")
    paragraphs = [text for path in sorted(corpus_folder.iterdir()) for text in path.read_text().split("\n\n") if text.strip()][:150]
    (folder / "set").mkdir()
    for file, (first, last) in enumerate(((0, 60), (60, 90), (90, 130))):
        lines = ["{broken" if number in BAD else json.dumps({"text": paragraphs[number]}) for number in range(first, last)]
        (folder / "set" / f"part-{file}.jsonl").write_text("\n".join(lines))
    (folder / "held.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in paragraphs[120:]))
    train_tokenizer(paragraphs, 300, folder / "tokenizer", ("mask",))
    return [
        *(argument for argument in tiny if argument not in tiny_data),
        "data=jsonl",
        f"data.path={folder / 'set'}",
        f"data.validation_path={folder / 'held.jsonl'}",
        f"data.tokenizer.path={folder / 'tokenizer'}",
        f"data.cache_dir={folder / 'cache'}",
        "data.sequence_length=32",
        "data.streaming=true",
        "data.shuffle_buffer=20",
        "train.micro_batch=3",
    ]


def bits(curve):
    return [(line["step"], line["loss"].hex(), line["grad_norm"].hex(), line["num_targets"], line["samples"]) for line in curve]


def epochs(run_dir):
    """In which epoch each data rank ended."""
    newest = max((run_dir / "checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1]))
    return [state["block"]["epoch"] for state in json.loads((newest / "state.json").read_text())["stream"]]


@pytest.mark.parametrize(
    ("form", "ranks"),
    [
        ("packed", 2),
        pytest.param("packed", 1, marks=pytest.mark.slow),
        pytest.param("masked", 2, marks=pytest.mark.slow),
        pytest.param("padded", 1, marks=pytest.mark.slow),
        pytest.param("padded", 2, marks=pytest.mark.slow),
        pytest.param("masked", 1, marks=pytest.mark.slow),
        pytest.param("packed", 3, marks=pytest.mark.slow),
        pytest.param("padded", 4, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_curve_is_bitwise_the_uninterrupted_one(stream, tmp_path, form, ranks):
    strategy = {1: "single", 2: "ddp"}.get(ranks, "fsdp")
    arguments = [*stream, *FORMS[form], f"strategy={strategy}", "train.steps=30" if form == "packed" else "train.steps=20"]
    whole = train_curve(arguments, tmp_path / "whole", ranks)
    if form != "packed":
        assert min(epochs(tmp_path / "whole")) >= 1, "the run must cross an epoch's edge on every rank"
    for stop in (4, 11):
        train_curve([*arguments, f"train.stop_after={stop}"], tmp_path / "run", ranks)
    assert bits(train_curve(arguments, tmp_path / "run", ranks)) == bits(whole)
    evaluated = [line for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if '"evaluate"' in line]
    assert len(evaluated) == 1 and json.loads(evaluated[0])["num_targets"] > 100


@pytest.mark.parametrize("more", [[], pytest.param(["checkpoint.background=true"], marks=pytest.mark.slow)], ids=["waiting", "background"])
def test_a_killed_run_goes_on_to_the_same_bits(stream, tmp_path, more):
    arguments = [*stream, *FORMS["padded"], "train.steps=40", "checkpoint.every=3", *more]
    whole = train_curve(arguments, tmp_path / "whole", 2)
    assert bits(kill_until_done(arguments, tmp_path / "run", 2, 3, random.Random(1))) == bits(whole)


@pytest.mark.slow
def test_another_strategy_on_as_many_ranks_goes_on_with_the_same_records(stream, tmp_path):
    whole = train_curve([*stream, "strategy=ddp"], tmp_path / "whole", 2)
    train_curve([*stream, "strategy=fsdp", "train.stop_after=8"], tmp_path / "run", 2)
    moved = train_curve([*stream, "strategy=ddp"], tmp_path / "run", 2)
    assert_same_curve(moved, whole, loss=1e-6, grad_norm=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["pipeline", "tensor"])
def test_ranks_that_share_samples_have_one_place_in_the_stream(stream, tmp_path, strategy):
    arguments = last_wins([*stream, *layout(strategy), "train.steps=12"])
    whole = train_curve(arguments, tmp_path / "whole", 2)
    train_curve([*arguments, "train.stop_after=5"], tmp_path / "run", 2)
    assert bits(train_curve(arguments, tmp_path / "run", 2)) == bits(whole)
    assert_same_curve(whole, train_curve(last_wins([*arguments, "strategy=single"]), tmp_path / "one", 1), loss=1e-5, grad_norm=1e-4)


def test_the_seed_and_the_buffer_decide_the_order(stream, tmp_path):
    changes = ([], ["train.seed=1"], ["data.shuffle_buffer=0"])
    curves = [
        train_curve([*stream, *change, "train.steps=3", "optimizer.warmup_steps=1"], tmp_path / str(n)) for n, change in enumerate(changes)
    ]
    assert len({curve[0]["loss"] for curve in curves}) == 3


def test_what_would_be_another_order_is_refused_by_name(stream, tmp_path):
    train_curve([*stream, "train.stop_after=3"], tmp_path / "run", 2)
    for ranks, change, named in (
        (1, "train.micro_batch=4", "data.streaming=true fixes the order of records for a number of data ranks"),
        (2, "data.shuffle_buffer=21", "data.streaming was {'shuffle_buffer': 20}"),
        (2, "data.text=text{text}", "data was"),
        (2, "data.streaming=false", "data was"),
    ):
        arguments = [argument for argument in stream if "streaming=false" not in change or "shuffle_buffer" not in argument]
        with pytest.raises(AssertionError, match="Refused") as caught:
            train_curve([*arguments, change], tmp_path / "run", ranks)
        assert named in str(caught.value)


def said(arguments):
    """What rank 0 shows of a run."""
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        train_here(arguments)
    return shown.getvalue()


def test_the_user_is_told_of_the_order_and_of_what_was_skipped(stream, tmp_path):
    arguments = last_wins([*stream, *FORMS["padded"], "train.steps=7", f"run.dir={tmp_path / 'run'}"])
    shown = " ".join(run_ranks(said, 2, arguments)[0].split())
    assert "read while training: shuffled 20 records at a time, order fixed for 2 data ranks, 30 records held out" in shown
    assert "steps 7 " in shown and "epochs" not in shown
    assert re.search(r"bad records skipped in this epoch so far: [1-4], such as part-[12]\.jsonl:\d+ \(broken JSON", shown), shown
    logs = "".join(path.read_text() for path in (tmp_path / "run" / "logs").iterdir())
    assert "skipped the bad record part-1.jsonl:7 (broken JSON: " in logs


def test_too_many_bad_records_end_the_run_on_every_rank_with_one_sentence(stream, tmp_path):
    with pytest.raises(AssertionError, match=r"more than data\.max_bad=1 bad records in this epoch, such as part-"):
        train_curve([*stream, *FORMS["padded"], "data.max_bad=1", "train.steps=40"], tmp_path / "run", 2)
    ended = json.loads((tmp_path / "run" / "exit.json").read_text())
    assert ended["code"] == 2 and "data.max_bad=1" in ended["sentence"]


def test_a_refusal_on_one_rank_ends_the_other_at_once(stream, tmp_path):
    """Two files, one per rank, and only one of them has bad records: the other rank must not wait for ``run.timeout``."""
    (tmp_path / "set").mkdir()
    for file in range(2):
        lines = ["{broken" if file and number > 30 else json.dumps({"text": f"text {number} of file {file}"}) for number in range(60)]
        (tmp_path / "set" / f"part-{file}.jsonl").write_text("\n".join(lines))
    changes = [f"data.path={tmp_path / 'set'}", "data.packing=false", "data.max_bad=1", "train.steps=1000", "run.timeout=600"]
    seen = Guests(tmp_path / "terminals", tmp_path / "run", 2, [*stream, *changes]).wait(60)
    assert seen.codes == [2, 2]
    assert (
        seen.ended["code"] == 2 and "more than data.max_bad=1 bad records in this epoch, such as part-1.jsonl:33" in seen.ended["sentence"]
    )
    assert seen.terminal.count("data.max_bad=1 bad records") == 1
