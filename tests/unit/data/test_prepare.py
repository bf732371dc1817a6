"""From text files to a corpus."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import trainer
from trainer.commands.prepare import run
from trainer.config import Config
from trainer.data.config import Text, TokenizerConfig
from trainer.data.prepare import prepare
from trainer.data.sources import text_files
from trainer.data.streams import open_stream
from trainer.data.tokenizer import load_tokenizer, train_tokenizer
from trainer.errors import Refused
from trainer.types import Needs, Window

NEEDS = Needs({"text": Window(16, 17)})


@pytest.fixture
def data(tmp_path) -> Text:
    """Two hundred lines of text, each a document."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("".join(f"line number {number} of the file\n" for number in range(200)))
    tokenizer = TokenizerConfig(vocab_size=300)
    return Text(
        path=str(tmp_path / "text"),
        document="line",
        sequence_length=16,
        validation_fraction=0.2,
        tokenizer=tokenizer,
        cache_dir=str(tmp_path / "cache"),
    )


def documents(corpus, split: str) -> list[str]:
    """Read back from the streams, framing checked."""
    tokenizer, vocabulary = load_tokenizer(corpus.tokenizer_folder)
    tokens, starts = open_stream(corpus.folder, f"{split}.text", vocabulary.size)
    found = []
    for ids in np.split(tokens, starts[1:]):
        assert (ids[0], ids[-1]) == (vocabulary.bos, vocabulary.eos)
        found.append(tokenizer.decode(ids[1:-1].tolist()))
    return found


def test_every_document_is_in_one_split_as_it_was(data):
    corpus = prepare(data, NEEDS)
    train, held_out = documents(corpus, "train"), documents(corpus, "validation")
    assert sorted(train + held_out) == sorted(f"line number {number} of the file" for number in range(200))
    assert 20 <= len(held_out) <= 60
    assert corpus.counts["train"]["documents"] == len(train)
    assert corpus.counts["validation"]["bytes"] == sum(map(len, held_out))
    assert len(corpus.samples("train")) == -(-(corpus.counts["train"]["tokens"] - 1) // 16)


def test_the_split_depends_on_content_alone(data):
    before = set(documents(prepare(data, NEEDS), "validation"))
    path = Path(data.path) / "a.txt"
    path.write_text("new first line\n" + "".join(reversed(path.read_text().splitlines(keepends=True))))
    after = set(documents(prepare(data, NEEDS), "validation"))
    assert before <= after <= before | {"new first line"}


def test_the_second_time_nothing_is_prepared(data, capsys):
    first = prepare(data, NEEDS)
    assert "Tokenizing: started" in capsys.readouterr().err
    written = (first.folder / "train.text.tokens").stat().st_mtime_ns
    second = prepare(replace(data, workers=2, prepare_timeout=5, sequence_length=8), Needs({"text": Window(8, 9)}))
    assert capsys.readouterr().err == ""
    assert second.folder == first.folder
    assert (second.folder / "train.text.tokens").stat().st_mtime_ns == written


def test_the_fingerprint_follows_content_and_settings(data, tmp_path):
    train_tokenizer(["some text"], 290, tmp_path / "other")
    variants = [
        data,
        replace(data, document="paragraph", validation_fraction=0.0),
        replace(data, validation_fraction=0.1),
        replace(data, tokenizer=TokenizerConfig(vocab_size=310)),
        replace(data, tokenizer=TokenizerConfig(path=str(tmp_path / "other"))),
    ]
    fingerprints = [prepare(variant, NEEDS).fingerprint for variant in variants]
    fingerprints.append(prepare(data, replace(NEEDS, special_tokens=("mask",))).fingerprint)
    (Path(data.path) / "b.txt").write_text("more text")
    fingerprints.append(prepare(data, NEEDS).fingerprint)
    assert len(set(fingerprints)) == len(fingerprints)


def test_a_pretrained_models_tokenizer_is_used_unless_another_is_named(data, tmp_path):
    for name in ("model", "named"):
        train_tokenizer([f"text for {name}"], 280, tmp_path / name)
    of_model = prepare(data, NEEDS, pretrained=str(tmp_path / "model"))
    assert of_model.vocabulary == load_tokenizer(tmp_path / "model")[1]
    both = prepare(replace(data, tokenizer=TokenizerConfig(path=str(tmp_path / "named"))), NEEDS, pretrained=str(tmp_path / "model"))
    assert both.vocabulary == load_tokenizer(tmp_path / "named")[1]


@pytest.mark.parametrize("damage", ["truncate", "remove", "metadata"])
def test_a_damaged_cache_is_built_again_with_one_line(data, caplog, damage):
    corpus = prepare(data, NEEDS)
    tokens = corpus.folder / "train.text.tokens"
    whole = tokens.read_bytes()
    if damage == "truncate":
        os.truncate(tokens, 10)
    elif damage == "remove":
        tokens.unlink()
    else:
        (corpus.folder / "metadata.json").write_text("{")
    again = prepare(data, NEEDS)
    assert (again.folder / "train.text.tokens").read_bytes() == whole
    assert [record.message for record in caplog.records if "is damaged" in record.message and "built again" in record.message]


def test_too_little_text_is_refused(data):
    with pytest.raises(Refused, match=r"less than one row of data\.sequence_length=100000"):
        prepare(replace(data, sequence_length=100_000), Needs({"text": Window(100_000, 100_001)}))
    (Path(data.path) / "a.txt").write_text(" \n\n")
    with pytest.raises(Refused, match=r"No document is left to train on"):
        prepare(data, NEEDS)
    (Path(data.path) / "a.txt").write_text("the only document")
    with pytest.raises(Refused, match=r"1 were held out by data\.validation_fraction=0\.99"):
        prepare(replace(data, validation_fraction=0.99), NEEDS)


def test_bad_documents_are_counted_up_to_the_limit(data):
    with (Path(data.path) / "a.txt").open("ab") as file:
        file.write(b"\xff\n\xfe\n")
    assert prepare(data, NEEDS).num_bad == 2
    with pytest.raises(Refused, match=r"data\.max_bad=1"):
        prepare(replace(data, max_bad=1), NEEDS)
    with pytest.raises(Refused, match=r"data\.max_bad=1"):
        prepare(replace(data, max_bad=1, validation_fraction=0.1), NEEDS)


def test_a_token_outside_the_vocabulary_is_refused(data, tmp_path, monkeypatch):
    """A tokenizer whose post-training edits emit an id that its vocabulary lacks."""
    monkeypatch.setattr("trainer.data.build.load_tokenizer", lambda folder: _shrunk(*load_tokenizer(folder)))
    with pytest.raises(Refused, match=r"its vocabulary ends at 99"):
        prepare(data, NEEDS)


def _shrunk(tokenizer, vocabulary):
    return tokenizer, replace(vocabulary, size=100)


def test_an_unwritable_cache_is_refused(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match=r"cannot be made .* Set data\.cache_dir"):
        prepare(replace(data, cache_dir=str(tmp_path / "file" / "cache")), NEEDS)


def test_racing_processes_prepare_once_and_agree(data):
    """Four real processes with one empty cache: one speaks."""
    script = "import sys, json; from trainer.data.config import *; from trainer.data.prepare import prepare; from trainer.types import *\n"
    script += "kind = json.loads(sys.argv[1]); kind['tokenizer'] = TokenizerConfig(**kind['tokenizer'])\n"
    script += "print(prepare(Text(**kind), Needs({'text': Window(16, 17)})).fingerprint)"
    settings = json.dumps(vars(data) | {"tokenizer": vars(data.tokenizer)})
    environment = os.environ | {"PYTHONPATH": str(Path(trainer.__file__).parents[1])}
    command = [sys.executable, "-c", script, settings]
    racers = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    results = [racer.communicate(timeout=60) for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4, results
    assert {out.strip() for out, _ in results} == {prepare(data, NEEDS).fingerprint}
    assert sum("Tokenizing: started" in err for _, err in results) == 1


class Two(Text):
    """A mix of two files of one folder."""

    def open(self, needs):
        return {name: text_files(f"{self.path}/{name}.txt", self.document) for name in ("a", "b")}

    def shares(self):
        return {"a": (1.0, 1.0), "b": (1.0, 1.0)}


def test_the_files_of_all_parts_are_read_again_only_when_they_change(data, monkeypatch):
    (Path(data.path) / "b.txt").write_text("".join(f"another line {number}\n" for number in range(50)))
    for path in Path(data.path).iterdir():
        os.utime(path, (0, 0))
    two = Two(**vars(data))
    first = prepare(two, NEEDS)
    assert {part: counts["train"]["documents"] > 20 for part, counts in first.parts.items()} == {"a": True, "b": True}
    monkeypatch.setattr("hashlib.file_digest", None)
    assert prepare(two, NEEDS).folder == first.folder


def test_what_an_objective_asks_of_the_tokenizer_is_in_it(data):
    data = replace(data, tokenizer=TokenizerConfig(vocab_size=400))
    vocabulary = prepare(data, replace(NEEDS, special_tokens=("sentinels", "mask"))).vocabulary
    assert (vocabulary.mask, vocabulary.sentinels) == (3, tuple(range(4, 104)))
    assert vocabulary.special == tuple(range(104))
    plain = prepare(data, NEEDS).vocabulary
    assert (plain.mask, plain.sentinels, plain.special) == (None, (), (0, 1, 2))
    with pytest.raises(Refused, match=r"data\.tokenizer\.vocab_size=300 is too small: 104 special tokens .* Set it to 400 or more"):
        prepare(replace(data, tokenizer=TokenizerConfig(vocab_size=300)), replace(NEEDS, special_tokens=("sentinels", "mask")))


def test_the_command_prints_a_summary(data, capsys):
    config = Config()
    config.data = data
    assert run(config) == 0
    printed = capsys.readouterr().out
    assert "held out" in printed
    assert "bytes per token" in printed
    assert str(prepare(data, NEEDS).folder) in printed
