"""A mix of sources: exact shares through whole runs, and nothing else different from a corpus of one source."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.contracts.engines import build_job
from trainer import assembly
from trainer.config import load
from trainer.data import mix_config
from trainer.data.config import Data, Text
from trainer.data.loader import held_out_batches
from trainer.data.mix_config import KINDS, SOURCES, Mix, add_kind
from trainer.data.order import samples_hash
from trainer.data.prepare import Corpus, prepare
from trainer.errors import Refused
from trainer.testing import assert_same_curve, last_wins, run_ranks, train_curve, train_here
from trainer.types import Needs, Window

STEPS, BATCH = 30, 64
WEIGHTS = {
    "constant": ["data.parts.finance.weight=51", "data.parts.general.weight=49"],
    "scheduled": [
        *("data.parts.finance.weight=9", "data.parts.finance.final_weight=1"),
        *("data.parts.general.weight=1", "data.parts.general.final_weight=9"),
    ],
}


@pytest.fixture(scope="module")
def folder(corpus_folder, tmp_path_factory):
    """A small source in JSON lines and a large one of text; one paragraph in three of the small one is in the large one too."""
    folder = tmp_path_factory.mktemp("sources")
    text = (corpus_folder / "calendar.py").read_text()
    paragraphs = [part.strip("\n") for part in text.split("\n\n") if part.strip()]  # as data.document=paragraph cuts them
    (folder / "finance.jsonl").write_text("".join(json.dumps({"body": text, "kind": i % 2}) + "\n" for i, text in enumerate(paragraphs)))
    (folder / "general").mkdir()
    for path in corpus_folder.iterdir():
        if path.name != "calendar.py":
            (folder / "general" / path.name).write_text(path.read_text())
    (folder / "general" / "both.py").write_text("\n\n".join(paragraphs[::3]))
    return folder


@pytest.fixture
def sources(folder):
    """The parts of a mix, without weights."""
    return [
        *("data=mix", "data.parts.finance.kind=jsonl", f"data.parts.finance.path={folder / 'finance.jsonl'}"),
        *("data.parts.finance.text=body", "data.parts.finance.label=kind"),
        *("data.parts.general.kind=text", f"data.parts.general.path={folder / 'general'}", "data.parts.general.document=paragraph"),
        "data.validation_fraction=0.05",
    ]


@pytest.fixture
def mixed(tiny, sources):
    """A run over the mix."""
    own = [argument for argument in tiny if argument.split("=")[0] not in ("data", "data.path", "data.document")]
    return [*own, *sources, f"train.steps={STEPS}", f"train.global_batch={BATCH}", "train.evaluate_samples=32"]


def read_ids(arguments, first, last):
    """On a rank: the ids of each step's global batch as the run's own loader gives them, and how many samples each part has."""
    job = build_job(arguments)
    loader = assembly.build_loader(job, SimpleNamespace(data_rank=job.launch.rank, data_size=job.launch.world_size))
    sizes = {name: len(part) for name, part in job.corpus.samples("train").parts.items()}
    return [(step, ids.tolist()) for step, ids, _ in loader.steps(first, last)], sizes


def due(finance: tuple[float, float], general: tuple[float, float], positions: np.ndarray) -> np.ndarray:
    """The integral before each position of the first source's share, whose weights go in straight lines over the run."""
    (a, b), (c, d), total = finance, general, STEPS * BATCH
    first, last = a / (a + c), b / (b + d)
    return first * positions + (last - first) * positions**2 / (2 * total)


@pytest.mark.parametrize("weights", ["constant", pytest.param("scheduled", marks=pytest.mark.slow)])
def test_shares_are_exact_in_every_window_of_1000_samples_across_a_resume_on_other_ranks(mixed, tmp_path, weights):
    arguments = last_wins([*mixed, *WEIGHTS[weights], "+strategy=ddp", "train.micro_batch=64"])
    whole = train_curve(arguments, tmp_path / "whole", 1)
    for ranks, stop in ((2, 13), (4, STEPS)):
        moved = train_curve([*arguments, f"train.stop_after={stop}"], tmp_path / "moved", ranks)
    assert_same_curve(moved, whole, loss=1e-5, grad_norm=1e-3)

    # What each session's loader gives on its ranks is what metrics.jsonl says was trained on.
    stream: list[int] = []
    for ranks, first, last in ((2, 1, 13), (4, 14, STEPS)):
        seen = run_ranks(read_ids, ranks, arguments, first, last)
        assert all(other == seen[0] for other in seen)
        steps, sizes = seen[0]
        assert [samples_hash(np.array(ids)) for _, ids in steps] == [line["samples"] for line in whole[first - 1 : last]]
        stream += [id for _, ids in steps for id in ids]
    assert list(sizes) == ["finance", "general"]

    finance = np.array(stream) < sizes["finance"]
    held = np.concatenate([[0], np.cumsum(finance)])
    positions = np.arange(held.size)
    expected = due((51, 51), (49, 49), positions) if weights == "constant" else due((9, 1), (1, 9), positions)
    windows, wanted = held[1000:] - held[:-1000], expected[1000:] - expected[:-1000]
    assert windows.size == STEPS * BATCH - 999
    assert np.abs(windows - wanted).max() <= 1.001, "two sources are exact to one sample"
    if weights == "constant":
        assert np.abs(windows - 510).max() <= 5, "0.5 % of 1,000"
    else:
        assert windows[0] > 650 and windows[-1] < 350


def test_the_small_source_is_repeated_while_the_large_one_is_in_its_first_epoch(mixed):
    ((steps, sizes),) = run_ranks(read_ids, 1, last_wins([*mixed, *WEIGHTS["constant"]]), 1, STEPS)
    ids = np.array([ids for _, ids in steps]).reshape(-1)
    drawn = np.bincount(ids, minlength=sum(sizes.values()))
    small, large = np.split(drawn, [sizes["finance"]])
    assert small.sum() == round(0.51 * STEPS * BATCH)
    assert small.max() - small.min() <= 1
    assert small.min() >= 2, "so that it is seen to be repeated"
    assert large.max() == 1


def evaluated(arguments, first):
    """On a rank: the held-out loss of each part, measured one part at a time on a model that has not been trained."""
    job = build_job(arguments)
    engine = assembly.build_engine(job)
    collate, found = assembly.collator(job), {}
    for name, part in job.corpus.samples("validation").parts.items():
        total, targets = torch.zeros((), dtype=torch.float64), 0
        for batch in held_out_batches(part, collate, first, 8):
            (term,) = engine.score(batch)[0].values()
            total += term.sum.double()
            targets += batch.counts["targets"]
        found[name] = (total.item() / targets, targets)
    return found


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_each_source_is_evaluated_by_itself_and_both_together(mixed, tmp_path, ranks):
    arguments = last_wins([*mixed, *WEIGHTS["constant"], "train.steps=1", "optimizer.warmup_steps=0", "optimizer.lr=1e-30"])
    train_curve(arguments, tmp_path / "run", ranks)
    (line,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if '"evaluate"' in line]
    (alone,) = run_ranks(evaluated, 1, arguments, 32)
    assert alone.keys() == {"finance", "general"}
    for name, (loss, _) in alone.items():
        assert line[f"{name}/loss"] == pytest.approx(loss, rel=1e-6)
    targets = sum(number for _, number in alone.values())
    assert line["num_targets"] == targets
    assert line["loss"] == pytest.approx(sum(loss * number for loss, number in alone.values()) / targets, rel=1e-6)
    assert abs(line["finance/loss"] - line["general/loss"]) > 1e-6


def test_a_source_without_weight_is_measured_but_never_trained_on(mixed, tmp_path):
    arguments = last_wins([*mixed, "data.parts.finance.weight=0", "train.steps=3", "optimizer.warmup_steps=1"])
    train_curve(arguments, tmp_path / "run")
    ((steps, sizes),) = run_ranks(read_ids, 1, arguments, 1, 3)
    assert min(min(ids) for _, ids in steps) >= sizes["finance"]
    assert '"finance/loss"' in (tmp_path / "run" / "metrics.jsonl").read_text()


def corpus_of(arguments, fields=("text",), label=None, packs=False) -> Corpus:
    wanted = [argument for argument in arguments if argument.startswith("data")]
    data = load(
        last_wins([*wanted, *([] if packs else ["data.packing=false", "data.sequence_length=4096", "model.max_positions=4096"])]), 1
    ).data
    return prepare(data, Needs({field: Window(4096, 4096) for field in fields}, label=label, packs=packs), quiet=True)


def documents(corpus: Corpus) -> dict[tuple[str, str], set[tuple[int, ...]]]:
    """Token ids of every record by part and split."""
    found = {}
    for split in ("train", "validation"):
        for name, part in corpus.samples(split).parts.items():
            rows = part.take(np.arange(len(part))).rows["text"]
            found[name, split] = {tuple(row[:filled].tolist()) for row, filled in zip(rows.tokens, rows.filled, strict=True)}
    return found


def test_a_text_that_two_sources_have_is_on_one_side_in_both(mixed):
    corpus = corpus_of([*mixed, "data.validation_fraction=0.2"])
    assert len(list(corpus.folder.rglob("tokenizer.json"))) == 1, "one tokenizer for all sources"
    found = documents(corpus)
    for split in ("train", "validation"):
        assert len(found["finance", split] & found["general", split]) >= 3, "so that there is something to be told apart"
    everywhere = {split: found["finance", split] | found["general", split] for split in ("train", "validation")}
    assert not everywhere["train"] & everywhere["validation"]


def test_what_one_source_holds_out_by_name_is_left_out_of_training_in_the_others(mixed, folder):
    records = [json.loads(line) for line in (folder / "finance.jsonl").read_text().splitlines()]
    (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for i, record in enumerate(records) if i % 6))
    (folder / "held_out.jsonl").write_text("".join(json.dumps(record) + "\n" for i, record in enumerate(records) if i % 6 == 0))
    corpus = corpus_of(
        [*mixed, f"data.parts.finance.path={folder}/train.jsonl", f"data.parts.finance.validation_path={folder}/held_out.jsonl"]
    )
    found = documents(corpus)
    assert len(found["finance", "validation"]) == len({record["body"] for record in records[::6]})
    held_out = found["finance", "validation"] | found["general", "validation"]
    assert not held_out & (found["finance", "train"] | found["general", "train"])
    assert corpus.num_leaked > 0
    assert found["general", "validation"], "its own share is held out of the other source"


def test_classes_are_those_of_all_sources(tmp_path, mixed):
    for name, labels in (("a", ("north", "south")), ("b", ("south", "west"))):
        lines = [json.dumps({"text": f"{name} {label} {i}", "label": label}) for i in range(30) for label in labels]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    parts = [f"data.parts.{name}.{key}" for name in "ab" for key in ("kind=jsonl", f"path={tmp_path / name}.jsonl")]
    common = [argument for argument in mixed if argument.startswith(("data.tokenizer", "data.cache_dir"))]
    data = load(["data=mix", *parts, *common, "objective=classification", "model=llama_tiny"], 1).data
    corpus = prepare(data, Needs({"text": Window(32, 32)}, label="class", packs=False), quiet=True)
    assert corpus.labels == ("north", "south", "west")
    samples = corpus.samples("train").parts
    seen = {name: {corpus.labels[label] for label in part.take(np.arange(len(part))).labels} for name, part in samples.items()}
    assert seen == {"a": {"north", "south"}, "b": {"south", "west"}}


def test_each_source_says_what_it_lacks_under_its_own_keys(mixed, folder, tmp_path):
    with pytest.raises(Refused) as refused:
        corpus_of([*mixed, "data.parts.finance.path=nosuch.jsonl", f"data.parts.general.path={tmp_path}"])
    first, second = refused.value.problems
    assert first.startswith("data.parts.finance.path=nosuch.jsonl holds no JSON")
    assert second.startswith(f"data.parts.general.path={tmp_path} holds no text")
    with pytest.raises(Refused, match=r"data\.parts\.finance\.text"):
        corpus_of([*mixed, "data.parts.finance.text=nosuch"])


def test_labels_are_spoken_of_under_the_keys_of_the_parts(mixed, folder):
    (folder / "one.jsonl").write_text("".join(json.dumps({"body": f"text {i}", "kind": "only"}) + "\n" for i in range(50)))
    parts = [f"data.parts.{name}.{key}" for name in "ab" for key in ("kind=jsonl", f"path={folder}/one.jsonl", "text=body", "label=kind")]
    common = [argument for argument in mixed if argument.startswith(("data.tokenizer", "data.cache_dir"))]
    data = load(["data=mix", *parts, *common, "objective=classification", "model=llama_tiny"], 1).data
    with pytest.raises(Refused, match=r"no classes to tell apart: .* with data\.parts\.a\.label and data\.parts\.b\.label\."):
        prepare(data, Needs({"text": Window(32, 32)}, label="class", packs=False), quiet=True)


@dataclass
class Pairwise(Data):
    """A plugin's corpus of two sources."""

    def open(self, needs):
        source = Text(path=self.cache_dir).open(needs)[""]
        return {"left": source, "right": source}


def test_a_plugin_of_several_sources_cannot_be_a_part(corpus_folder, monkeypatch):
    monkeypatch.setattr("trainer.data.mix_config.SOURCES", dict(SOURCES))
    monkeypatch.setattr("trainer.data.mix_config.KINDS", dict(KINDS))
    add_kind("pairwise", Pairwise)
    kinds = mix_config.KINDS
    parts = {"a": kinds["pairwise"](kind="pairwise"), "b": kinds["text"](kind="text", path=str(corpus_folder))}
    with pytest.raises(Refused) as refusal:
        Mix(parts=parts, cache_dir=str(corpus_folder)).open(Needs({"text": Window(32, 33)}))
    (sentence,) = refusal.value.problems
    assert (
        sentence.startswith("data.parts.a.kind=pairwise brings 2 sources of its own") and "leave the mix out with data=pairwise" in sentence
    )


@pytest.mark.parametrize(
    "change", ["data.parts.finance.weight=52", pytest.param("data.parts.finance.final_weight=60", marks=pytest.mark.slow)]
)
def test_a_run_cannot_change_its_weights(mixed, tmp_path, change):
    arguments = [*mixed, *WEIGHTS["constant"], "train.steps=4", "optimizer.warmup_steps=1"]
    train_curve([*arguments, "train.stop_after=2"], tmp_path / "run")
    with pytest.raises(AssertionError, match="a run cannot change it"):
        run_ranks(train_here, 1, last_wins([*arguments, change, f"run.dir={tmp_path / 'run'}"]))
    assert len(train_curve([*arguments, "data.parts.finance.final_weight=51"], tmp_path / "run")) == 4, "the same in other words"
