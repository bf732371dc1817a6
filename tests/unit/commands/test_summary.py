"""The summary of ``isotrain prepare``: every number in it, counted once more."""

import json
import re
from collections import Counter

import numpy as np
import pytest

from trainer import cli
from trainer.config import load
from trainer.data.prepare import prepare
from trainer.testing import last_wins

COMMON = ["data.sequence_length=16", "data.tokenizer.vocab_size=300", "data.validation_fraction=0.3", "run.quiet=true"]


@pytest.fixture
def summary(tmp_path, capsys):
    """Prepares and returns (what is printed by name, the corpus)."""

    def run(*arguments):
        arguments = last_wins([*COMMON, f"data.cache_dir={tmp_path / 'cache'}", *arguments])
        assert cli.main(["prepare", *arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len({len(match[0]) for line in lines if (match := re.match(r" *(?:\S+ )+ +", line))}) == 1, "one column"
        config = load(arguments, None)
        needs = config.objective.needs(config.data.sequence_length, config.data.target_length)
        found = (re.fullmatch(r"( *\S+(?: \S+)*)  +(.*)", line).groups() for line in lines)
        return dict(found), prepare(config.data, needs, quiet=True)

    return run


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return f"data.path={path}"


RECORDS = [
    {
        "text": f"record {n} {3**n}",
        "source": f"source {n}",
        "target": str(7 ** (n % 30)) if n % 30 else "",
        "label": "abc"[n * n % 3],
        "tags": ["odd"] * (n % 2),
    }
    for n in range(1, 60)
]
"""Of growing length; one has no target."""


def test_documents_are_packed(summary, tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"line number {number} of the file\n" for number in range(200)))
    facts, corpus = summary("data=text", f"data.path={tmp_path}/*.txt", "data.document=line")
    train, held_out = corpus.counts["train"], corpus.counts["validation"]
    assert train["documents"] + held_out["documents"] == 200 and held_out["documents"] > 20
    assert facts["documents"] == f"{train['documents']} to train on, {held_out['documents']} held out"
    assert facts["tokens"].startswith(f"{train['tokens']:,} to train on, {held_out['tokens']:,} held out, ")
    num_rows = [len(corpus.samples(split)) for split in ("train", "validation")]
    assert facts["rows"] == f"{num_rows[0]} to train on, {num_rows[1]} held out, of 16 tokens"
    filled = int(corpus.samples("train").take(np.arange(num_rows[0])).rows["text"].filled.clip(max=16).sum())
    assert facts["layout"] == f"packed, {100 * filled / (16 * num_rows[0]):.2f} % of the slots used"
    assert set(facts) == {"documents", "tokens", "rows", "layout", "vocabulary", "folder"}
    assert facts["folder"] == str(corpus.folder) and str(corpus.tokenizer_folder) in facts["vocabulary"]


def test_pairs_are_padded(summary, tmp_path):
    facts, corpus = summary(
        "data=jsonl", write(tmp_path / "r.jsonl", RECORDS), "objective=seq2seq", "model=t5_tiny", "data.target_length=12"
    )
    samples = corpus.samples("train")
    taken = samples.take(np.arange(len(samples)))
    lengths = np.maximum(*(taken.rows[field].filled for field in ("source", "target")))
    assert facts["layout"] == f"padded, longest field mean {lengths.mean():.1f} tokens, longest {lengths.max()}"
    too_long = sum(corpus.samples(split).num_too_long for split in ("train", "validation"))
    assert too_long > 5
    assert facts["rows"].endswith(f"of up to 16 source tokens and 12 target tokens; {too_long} longer ones cut (data.too_long=truncate)")
    assert facts["left out"] == "1 blank 'target' (bad)"
    for field in ("source", "target"):
        counts = [corpus.parts[""][split]["tokens"][field] for split in ("train", "validation")]
        mean = counts[0] / corpus.counts["train"]["documents"]
        assert facts[f"  {field}"] == f"{counts[0]} to train on, {counts[1]} held out, mean {mean:.1f}"


def test_too_long_ones_may_be_left_out(summary, tmp_path):
    arguments = ["data=jsonl", write(tmp_path / "r.jsonl", RECORDS), "data.packing=false", "data.too_long=skip"]
    facts, corpus = summary(*arguments)
    too_long = sum(corpus.samples(split).num_too_long for split in ("train", "validation"))
    assert f"of up to 16 tokens; {too_long} longer ones left out (data.too_long=skip)" in facts["rows"] and too_long > 5


def test_classes_are_counted(summary, tmp_path):
    task = ["objective=classification", "model=bert_tiny"]
    facts, corpus = summary("data=jsonl", write(tmp_path / "r.jsonl", RECORDS), *task)
    samples = corpus.samples("train")
    counts = Counter(corpus.labels[label] for label in samples.take(np.arange(len(samples))).labels)
    told = ", ".join(f"{name} {100 * count / len(samples):.1f} %" for name, count in counts.most_common())
    assert facts["labels"] == f"{len(corpus.labels)} classes: {told}" and len(counts) > 1

    many = [record | {"label": f"class {number}"} for number, record in enumerate(RECORDS)]
    facts, _ = summary("data=jsonl", write(tmp_path / "m.jsonl", many), *task)
    assert facts["labels"].startswith("59 classes: class ") and facts["labels"].endswith(", ...") and facts["labels"].count("%") == 8


def test_several_classes_and_numbers_are_counted(summary, tmp_path):
    path = write(tmp_path / "r.jsonl", [record | {"value": len(record["text"]) / 2} for record in RECORDS])
    several = ["objective=classification", "objective.kind=multi_label", "data.label=tags", "model=bert_tiny"]
    facts, corpus = summary("data=jsonl", path, *several)
    samples = corpus.samples("train")
    odd = samples.take(np.arange(len(samples))).labels.mean()
    assert facts["labels"] == f"1 classes: odd {100 * odd:.1f} %" and 0.2 < odd < 0.8
    numbers = ["objective=classification", "objective.kind=regression", "data.label=value", "model=bert_tiny"]
    facts, corpus = summary("data=jsonl", path, *numbers)
    labels = corpus.samples("train").take(np.arange(len(corpus.samples("train")))).labels
    assert facts["labels"] == f"numbers from {labels.min():g} to {labels.max():g}, mean {labels.mean():.3g}"


def test_what_is_bad_or_leaks_is_told(summary, tmp_path):
    path = write(tmp_path / "r.jsonl", [*RECORDS, {"text": 5}, {"text": 7}, {"other": 1}])
    held_out = write(tmp_path / "v.jsonl", RECORDS[:4]).removeprefix("data.path=")
    facts, corpus = summary("data=jsonl", path, f"data.validation_path={held_out}", "data.validation_fraction=0.01")
    assert facts["left out"] == "2 'text' is not text (bad), 1 without 'text' (bad), 4 of the held-out texts in training"
    assert corpus.counts["validation"]["documents"] == 4


def test_a_mix_shows_its_parts(summary, tmp_path):
    mix = [f"data.parts.{name}.{key}={value}" for name, part in _parts(tmp_path).items() for key, value in part.items()]
    facts, corpus = summary("data=mix", *mix)
    for name, share in (("big", "75 % to 50 %"), ("small", "25 % to 50 %")):
        counts = corpus.parts[name]
        assert facts[f"  {name}"] == (
            f"{share} of the samples; {counts['train']['documents']} to train on, {counts['validation']['documents']} held out, "
            f"{counts['train']['tokens']['text']:,} tokens in {len(corpus.samples('train').parts[name])} rows"
        )
    assert facts["documents"].startswith(f"{corpus.counts['train']['documents']} to train on")


def _parts(folder):
    write(folder / "big.jsonl", RECORDS[20:])
    write(folder / "small.jsonl", RECORDS[:20])
    paths = {name: {"kind": "jsonl", "path": folder / f"{name}.jsonl"} for name in ("big", "small")}
    return {"big": paths["big"] | {"weight": 3, "final_weight": 1}, "small": paths["small"]}
