"""Reports as a browser reads them: the numbers of the files, whatever the files hold, and nothing that a file could make of the page."""

import json
import math
import random
import shutil
import subprocess

import pytest

from tests.unit.report.runs import Page, step, values_drawn, write_run
from trainer.callbacks.report import RunReport
from trainer.report.comparison import Comparison
from trainer.report.folder import read_run
from trainer.report.parity import read_steps
from trainer.report.single import report

SESSIONS = [
    {
        "kind": "began",
        "time": "2026-01-02T03:04:05+0000",
        "step": 0,
        "strategy": "fsdp",
        "world_size": 2,
        "device": "cpu",
        "precision": "bf16",
    },
    {"kind": "spent", "step": 40, "seconds": 90.0, "phases": {"forward_backward": 60.0, "evaluation": 20.0}},
    {"kind": "ended", "code": 4, "sentence": "Stopped by SIGTERM"},
    {
        "kind": "began",
        "time": "2026-01-02T04:00:00+0000",
        "step": 30,
        "strategy": "zero3",
        "world_size": 4,
        "device": "cpu",
        "precision": "bf16",
    },
    {"kind": "spent", "step": 50, "seconds": 30.0, "phases": {"forward_backward": 20.0}},
]


def read(folder, defaults=None):
    return Page(report(read_run(folder), defaults or {}))


@pytest.fixture
def whole(tmp_path):
    """A run with everything: held-out metrics of a mix, samples, two sessions, an update that was left out, ranks, a bubble."""
    rng = random.Random(1)
    lines = []
    for number in range(1, 51):
        bubble = {"bubble": rng.random() / 4, "mfu": 0.3 + rng.random() / 10}
        lines.append(step(number, loss=8 / number**0.3 + rng.random(), lr=1e-3 * (1 - number / 60), applied=number != 17, **bubble))
        if number % 10 == 0:
            held_out = {"loss": 7 / number**0.3, "perplexity": 90 - number, "code/loss": 1.0, "prose/loss": 2.0, "num_targets": 99}
            lines += [{"kind": "evaluate", "step": number, **held_out}]
            lines += [{"kind": "sample", "step": number, "prompt": "def ", "text": f"def f{number}(): <b>"}]
    lines += [{"kind": "ranks", "step": 50, "peak_memory_bytes": [2**20, 2**21], "waited_seconds": [0.5, 0.0], "slowest_rank": 1}]
    config = {"train": {"steps": 50, "seed": 0}, "precision": {"compute": "bf16"}}
    return write_run(tmp_path / "whole", lines, 0, "Step 50 of 50 is done.", SESSIONS, **config), lines


def test_the_numbers_drawn_are_those_of_the_files(whole):
    folder, lines = whole
    html = report(read_run(folder), {"train.steps": 780, "train.seed": 0})
    trained = [line for line in lines if line["kind"] == "train"]
    for chart, column in (("Loss", "loss"), ("Learning rate", "lr"), ("Pipeline bubble", "bubble"), ("Peak memory", "peak_memory_bytes")):
        drawn = values_drawn(html, chart)
        assert [place for place, _ in drawn] == pytest.approx([line["step"] for line in trained], abs=0.1)
        high = max(line[column] for line in trained)
        assert [value for _, value in drawn] == pytest.approx([line[column] for line in trained], abs=0.005 * high), chart
    held_out = values_drawn(html, "Loss", 1)
    assert [value for _, value in held_out] == pytest.approx([line["loss"] for line in lines if line["kind"] == "evaluate"], abs=0.05)
    page = Page(html)
    assert page.paths("Loss", "resume") == ["M591.8 0V1000"], "session 2 went on from step 30, of 1 to 50"
    assert page.paths("Gradient norm", "bad") == ["M326.5 1000v-60"], "step 17"
    speeds = [round(value) for _, value in values_drawn(html, "Speed, per second", 0)]
    assert set(speeds) == {80}, "slots are drawn where they are others than tokens"
    shown = page.data()
    texts = shown["charts"][0]["lines"][0][1]
    assert [float(text.replace(",", "")) for text in texts] == pytest.approx([line["loss"] for line in trained], rel=1e-4)


def test_all_that_is_known_is_told(whole):
    folder, _ = whole
    page = read(folder, {"train.steps": 780, "train.seed": 0})
    for text in (
        "whole",
        "done",
        "Step 50 of 50 is done.",
        "zero3 x 4",
        "2 min 0 s",
        "2 sessions",
        "bf16",
        "5 k",
        "fsdp x 2",
        "Stopped by SIGTERM",
    ):
        assert text in page.text, text
    for text in (
        "1 of 50: step 17.",
        "slowest: the others wait for it",
        "1 MiB",
        "after step 50",
        "f50(): <b>",
        "train.steps",
        "1 to 40; taken up again after 30",
    ):
        assert text in page.text, text
    marked = [data for tag, data in page.texts if tag == "mark"]
    assert set(marked) == {"50"}, "train.steps differs from its default, and nothing else"
    assert "Held out: loss" in page.charts and "Held out: perplexity" in page.charts and "Time of a step" in page.charts
    bars = [attrs["aria-label"] for tag, attrs, _ in page.tags if attrs.get("class") == "shares"]
    assert bars == ["forward and backward 1 min 20 s (66.7%); evaluation 20 s (16.7%); everything else 20 s (16.7%)"]


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [step(1)],
        [step(1, loss=math.nan)],
        [{"kind": "train", "step": 5}],
        [step(n, loss=math.inf) for n in range(1, 9)],
        [step(1, loss=1.7e308)],
    ],
)
def test_little_and_strange_is_legible(tmp_path, lines):
    folder = write_run(tmp_path / "run", lines, None)
    with (folder / "metrics.jsonl").open("ab") as stream:
        stream.write(b'{"kind": "train", "st')
    page = read(folder)
    assert "ended without a word" in page.text
    assert ("No step is on record yet." in page.text) == (not page.charts)
    assert page.charts or not lines or "loss" not in lines[0]
    drawn = [attrs["d"] for tag, attrs, chart in page.tags if tag == "path"]
    assert not any("nan" in path or "inf" in path for path in drawn)
    if lines and not math.isfinite(lines[0].get("loss", 0)):
        assert f"{lines[-1]['loss']}" in page.text and "was" in page.text


def test_a_file_cannot_say_anything_to_the_browser(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'\x1b[2J\ud800"
    lines = [step(1), {"kind": "evaluate", "step": 1, f"{evil}/loss": 1.0, "examples": [{"written": evil, "reference": evil}]}]
    lines += [{"kind": "sample", "step": 1, "prompt": evil, "text": evil + evil}, {"kind": "ranks", "step": 1, "peak_memory_bytes": [evil]}]
    sessions = [
        {"kind": "began", "step": 0, "strategy": evil, "world_size": evil, "device": evil, "unit": evil, "axes": evil, "time": evil}
    ]
    folder = tmp_path / "<script>alert(3)<" / "x"
    folder.parent.mkdir()
    folder = folder.parent / "script>&\"'"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "sessions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in sessions))
    (folder / "exit.json").write_text(json.dumps({"code": 3, "sentence": evil}))
    (folder / "passport.json").write_text(json.dumps({evil: {evil: evil}, "device": evil}))
    (folder / "config.yaml").write_text(json.dumps({"defaults": [f"/schema/model/{evil}@x"], "train": {"x": evil, "steps": evil}}))
    run = read_run(folder)
    for html in (report(run, {"train.x": evil * 2}), Comparison.of([run, run], [read_steps(folder / "metrics.jsonl")] * 2).page()):
        page = Page(html)
        assert sorted(tag for tag, _, _ in page.tags if tag in ("script", "img")) == ["script", "script"]
        allowed = {
            "class",
            "style",
            "title",
            "id",
            "type",
            "lang",
            "charset",
            "name",
            "content",
            "http-equiv",
            "d",
            "viewbox",
            "role",
            "open",
        }
        allowed |= {"preserveaspectratio", "aria-label", "data-chart", "data-last"}
        assert {name for _, attributes, _ in page.tags for name in attributes} <= allowed
        assert all(
            attributes.get("style", "").count(";") <= 1 and "url" not in attributes.get("style", "") for _, attributes, _ in page.tags
        )
        assert "alert(1)" in page.text and "\x1b" not in html.decode()
        page.data()


def test_a_page_needs_no_other_file(whole):
    html = report(read_run(whole[0]), {}).decode()
    assert "://" not in html and "src=" not in html and "href=" not in html and "@import" not in html and "url(" not in html
    policy = next(attrs["content"] for tag, attrs, _ in Page(html.encode()).tags if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none';")


@pytest.mark.parametrize("number", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_long_run_is_a_small_page(tmp_path, number):
    folder = write_run(tmp_path / "long", [])
    with (folder / "metrics.jsonl").open("a") as stream:
        for one in range(1, number + 1):
            stream.write(json.dumps(step(one, loss=8 / one**0.1 + 9 * (one == number // 3), slots_per_second=80.0 + one % 13)) + "\n")
    html = report(read_run(folder), {})
    assert len(html) < 1_000_000
    page = Page(html)
    assert f"Drawn from {number:,} lines" in page.text and "the band reaches from the least to the most" in page.text
    assert max(len(line[1]) for chart in page.data()["charts"] for line in chart["lines"]) <= 1000
    assert len(page.paths("Loss", "band")) == 1 and "Some points lie higher, up to" in page.text, (
        "one wild step is neither lost nor squeezes the rest"
    )


def test_runs_beside_each_other(tmp_path, whole):
    _, lines = whole
    other = [line | ({"loss": line["loss"] * (1 + 1e-6)} if line["kind"] == "train" and line["step"] > 20 else {}) for line in lines]
    folders = [whole[0], write_run(tmp_path / "other", other, 0, train={"steps": 50, "seed": 1}, precision={"compute": "bf16"})]
    runs = [read_run(folder) for folder in folders]
    comparison = Comparison.of(runs, [read_steps(run.history.path) for run in runs])
    page = Page(comparison.page())
    assert "the same within 1.0e-06" in page.text and "equal at every step" in page.text
    assert len(page.paths("Loss", "line")) == 2 and len(page.paths("How far losses are apart", "line")) == 1
    rows = [data for tag, data in page.texts if tag in ("td", "mark", "b")]
    at = rows.index("train.seed")
    assert rows[at + 1 : at + 3] == ["0", "1"] and "train.steps" not in rows
    assert comparison.facts()["beside the first"] == ["", "the same within 1.0e-06"]


def test_what_cannot_be_written_is_said_once(whole):
    folder, _ = whole
    said = []
    keeper = RunReport(folder, lambda options: {}, said.append)
    keeper.write()
    assert (folder / "report.html").read_bytes().startswith(b"<!doctype html>")
    (folder / "report.html").unlink()
    (folder / "report.html").mkdir()
    keeper.write()
    keeper.write()
    assert len(said) == 1 and f"isotrain report {folder}" in said[0]
    silent = RunReport(folder / "nothing", lambda options: {}, said.append)
    silent.write()
    assert len(said) == 1


def test_a_browser_opens_it_and_a_pointer_reads_it(whole, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium is installed here: apt-get install chromium")
    html = report(read_run(whole[0]), {}).decode()
    point = """<script>window.onerror=e=>document.title='broken '+e;const first=document.querySelector('.plot'),box=first.getBoundingClientRect();
first.dispatchEvent(new PointerEvent('pointermove',{clientX:box.left+box.width*20/49}))</script></body>"""
    page = tmp_path / "page.html"
    page.write_text(html.replace("</body>", point))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    seen = subprocess.run([chromium, *options, page.as_uri()], capture_output=True, text=True, timeout=60, check=True).stdout
    assert "<title>whole: done</title>" in seen, "the title says what goes wrong"
    assert '<span class="at dim">step 21</span>' in seen
    losses = [line["loss"] for line in whole[1] if line["kind"] == "train"]
    read_out = Page(seen.encode())
    texts = [data for tag, data in read_out.texts if tag == "b"]
    assert float(texts[texts.index("Loss") + 1]) == pytest.approx(losses[20], rel=1e-4)
