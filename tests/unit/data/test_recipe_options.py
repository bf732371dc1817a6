"""The data options that read what a recipe fetched; fetching itself is tested with trainer.recipes."""

import json
from pathlib import Path

import pytest

from trainer.data.config import Data, DebianDescriptions, PythonStdlib, Text, Vader
from trainer.data.sources import Skipped
from trainer.types import Needs, Record, Window

ROW = Window(8, 8)
TEXT, PAIR = Needs({"text": ROW}), Needs({"source": ROW, "target": ROW}, packs=False)
CLASS, CLASSES, NUMBER = (Needs({"text": ROW}, packs=False, label=kind) for kind in ("class", "classes", "number"))


@pytest.fixture(autouse=True)
def fetched(tmp_path, monkeypatch):
    """Two recipes that are there already, each telling in its record where it was asked to be."""

    def write(name: str, row: dict) -> Path:
        (tmp_path / name).write_text(json.dumps(row) + "\n")
        return tmp_path / name

    monkeypatch.setattr(
        "trainer.recipes.vader.vader",
        lambda cache, part: write("movie.jsonl", {"text": f"{part} in {cache}", "label": "positive", "score": 1.5}),
    )
    monkeypatch.setattr(
        "trainer.recipes.debian.debian_descriptions",
        lambda cache: write("d.jsonl", {"document": f"long in {cache}", "summary": "short", "group": "first paragraph"}),
    )


def only(config: Data, needs: Needs) -> Record:
    (record,) = config.open(needs)[""].records(Skipped(0))
    return record


def test_vader_gives_text_classes_or_numbers(tmp_path):
    config = Vader(part="tweets", cache_dir=str(tmp_path))
    text = {"text": f"tweets in {tmp_path}/recipes"}
    assert [only(config, needs) for needs in (TEXT, CLASS, NUMBER)] == [
        Record("movie.jsonl:1", text),
        Record("movie.jsonl:1", text, "positive"),
        Record("movie.jsonl:1", text, 1.5),
    ]


def test_descriptions_are_held_out_by_their_first_paragraph(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    document = f"long in {tmp_path}/isotrain/recipes"
    assert only(DebianDescriptions(), PAIR) == Record("d.jsonl:1", {"source": document, "target": "short"}, group="first paragraph")
    assert only(DebianDescriptions(), TEXT).texts == {"text": document}


@pytest.mark.parametrize(
    ("config", "able"),
    [
        (Text(), [TEXT]),
        (PythonStdlib(), [TEXT, PAIR, CLASS]),
        (Vader(), [TEXT, CLASS, NUMBER]),
        (DebianDescriptions(), [TEXT, PAIR]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_corpus_says_what_it_lacks(config, able):
    for needs in (TEXT, PAIR, CLASS, CLASSES, NUMBER):
        assert (config.lacks(needs) is None) == (needs in able), needs
    words = Text().lacks(Needs({"source": ROW, "target": ROW}, label="class"))
    assert words == "a source and a target and a label"
