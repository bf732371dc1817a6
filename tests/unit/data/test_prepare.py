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
from trainer.data.streams import open_stream
from trainer.data.tokenizer import load_tokenizer, train_tokenizer
from trainer.errors import Refused


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
    tokens, starts = open_stream(corpus.folder, split, vocabulary.size)
    found = []
    for ids in np.split(tokens, starts[1:]):
        assert (ids[0], ids[-1]) == (vocabulary.bos, vocabulary.eos)
        found.append(tokenizer.decode(ids[1:-1].tolist()))
    return found


def test_every_document_is_in_one_split_as_it_was(data):
    corpus = prepare(data)
    train, held_out = documents(corpus, "train"), documents(corpus, "validation")
    assert sorted(train + held_out) == sorted(f"line number {number} of the file" for number in range(200))
    assert 20 <= len(held_out) <= 60
    assert corpus.counts["train"]["documents"] == len(train)
    assert corpus.counts["validation"]["bytes"] == sum(map(len, held_out))
    assert len(corpus.rows("train")) == -(-(corpus.counts["train"]["tokens"] - 1) // 16)


def test_the_split_depends_on_content_alone(data):
    before = set(documents(prepare(data), "validation"))
    path = Path(data.path) / "a.txt"
    path.write_text("new first line\n" + "".join(reversed(path.read_text().splitlines(keepends=True))))
    after = set(documents(prepare(data), "validation"))
    assert before <= after <= before | {"new first line"}


def test_the_second_time_nothing_is_prepared(data, capsys):
    first = prepare(data)
    assert "Tokenizing: started" in capsys.readouterr().err
    written = (first.folder / "train.tokens").stat().st_mtime_ns
    second = prepare(replace(data, workers=2, prepare_timeout=5, sequence_length=8))
    assert capsys.readouterr().err == ""
    assert second.folder == first.folder
    assert (second.folder / "train.tokens").stat().st_mtime_ns == written


def test_the_fingerprint_follows_content_and_settings(data, tmp_path):
    train_tokenizer(["some text"], 290, tmp_path / "other")
    variants = [
        data,
        replace(data, document="paragraph", validation_fraction=0.0),
        replace(data, validation_fraction=0.1),
        replace(data, tokenizer=TokenizerConfig(vocab_size=310)),
        replace(data, tokenizer=TokenizerConfig(path=str(tmp_path / "other"))),
    ]
    fingerprints = [prepare(variant).fingerprint for variant in variants]
    (Path(data.path) / "b.txt").write_text("more text")
    fingerprints.append(prepare(data).fingerprint)
    assert len(set(fingerprints)) == len(fingerprints)


def test_a_pretrained_models_tokenizer_is_used_unless_another_is_named(data, tmp_path):
    for name in ("model", "named"):
        train_tokenizer([f"text for {name}"], 280, tmp_path / name)
    of_model = prepare(data, pretrained=str(tmp_path / "model"))
    assert of_model.vocabulary == load_tokenizer(tmp_path / "model")[1]
    both = prepare(replace(data, tokenizer=TokenizerConfig(path=str(tmp_path / "named"))), pretrained=str(tmp_path / "model"))
    assert both.vocabulary == load_tokenizer(tmp_path / "named")[1]


@pytest.mark.parametrize("damage", ["truncate", "remove", "metadata"])
def test_a_damaged_cache_is_built_again_with_one_line(data, caplog, damage):
    corpus = prepare(data)
    tokens = corpus.folder / "train.tokens"
    whole = tokens.read_bytes()
    if damage == "truncate":
        os.truncate(tokens, 10)
    elif damage == "remove":
        tokens.unlink()
    else:
        (corpus.folder / "metadata.json").write_text("{")
    again = prepare(data)
    assert (again.folder / "train.tokens").read_bytes() == whole
    assert [record.message for record in caplog.records if "is damaged" in record.message and "built again" in record.message]


def test_too_little_text_is_refused(data):
    with pytest.raises(Refused, match=r"less than one row of data\.sequence_length=100000"):
        prepare(replace(data, sequence_length=100_000))
    (Path(data.path) / "a.txt").write_text(" \n\n")
    with pytest.raises(Refused, match=r"No document is left to train on"):
        prepare(data)
    (Path(data.path) / "a.txt").write_text("the only document")
    with pytest.raises(Refused, match=r"1 were held out by data\.validation_fraction=0\.99"):
        prepare(replace(data, validation_fraction=0.99))


def test_bad_documents_are_counted_up_to_the_limit(data):
    with (Path(data.path) / "a.txt").open("ab") as file:
        file.write(b"\xff\n\xfe\n")
    assert prepare(data).num_bad == 2
    with pytest.raises(Refused, match=r"data\.max_bad=1"):
        prepare(replace(data, max_bad=1))
    with pytest.raises(Refused, match=r"data\.max_bad=1"):
        prepare(replace(data, max_bad=1, validation_fraction=0.1))


def test_a_token_outside_the_vocabulary_is_refused(data, tmp_path, monkeypatch):
    """A tokenizer whose post-training edits emit an id that its vocabulary lacks."""
    monkeypatch.setattr("trainer.data.build.load_tokenizer", lambda folder: _shrunk(*load_tokenizer(folder)))
    with pytest.raises(Refused, match=r"its vocabulary ends at 99"):
        prepare(data)


def _shrunk(tokenizer, vocabulary):
    return tokenizer, replace(vocabulary, size=100)


def test_large_vocabularies_are_stored_in_four_bytes(tmp_path):
    from trainer.data.streams import StreamWriter
    from trainer.types import Vocabulary

    writer = StreamWriter(tmp_path, "train", Vocabulary(size=70_000, bos=None, eos=69_999, pad=None, sha256=""))
    writer.append([66_000], 3)
    writer.close()
    tokens, starts = open_stream(tmp_path, "train", 70_000)
    assert tokens.tolist() == [66_000, 69_999]
    assert starts.tolist() == [0]


def test_an_unwritable_cache_is_refused(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match=r"cannot be made .* Set data\.cache_dir"):
        prepare(replace(data, cache_dir=str(tmp_path / "file" / "cache")))


def test_racing_processes_prepare_once_and_agree(data):
    """Four real processes with one empty cache: one speaks."""
    script = "import sys, json; from trainer.data.config import *; from trainer.data.prepare import prepare\n"
    script += (
        "kind = json.loads(sys.argv[1]); kind['tokenizer'] = TokenizerConfig(**kind['tokenizer']); print(prepare(Text(**kind)).fingerprint)"
    )
    settings = json.dumps(vars(data) | {"tokenizer": vars(data.tokenizer)})
    environment = os.environ | {"PYTHONPATH": str(Path(trainer.__file__).parents[1])}
    command = [sys.executable, "-c", script, settings]
    racers = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    results = [racer.communicate(timeout=60) for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4, results
    assert {out.strip() for out, _ in results} == {prepare(data).fingerprint}
    assert sum("Tokenizing: started" in err for _, err in results) == 1


def test_the_command_prints_a_summary(data, capsys):
    config = Config()
    config.data = data
    assert run(config) == 0
    printed = capsys.readouterr().out
    assert "held out" in printed
    assert "bytes per token" in printed
    assert str(prepare(data).folder) in printed
