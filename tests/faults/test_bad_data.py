"""Every file of bad_data/ becomes what bad_data.yaml says: what is good arrives, what is bad is counted or refused in a sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from trainer import cli
from trainer.config import load
from trainer.data.prepare import Corpus, prepare
from trainer.data.streams import open_stream
from trainer.data.tokenizer import load_tokenizer

HERE = Path(__file__).with_name("bad_data")
CASES = yaml.safe_load(Path(__file__).with_name("bad_data.yaml").read_text())
OPTIONS = {".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".parquet": "parquet"}
SETTINGS = ["data.sequence_length=8", "data.tokenizer.vocab_size=300", "data.validation_fraction=0", "precision=fp32", "run.quiet=true"]


def write_a_line_of_65_mib(path: Path) -> None:
    good = [json.dumps({"text": f"record {number} is good and must arrive"}) for number in range(2)]
    path.write_text("\n".join([good[0], json.dumps({"text": "x" * (65 << 20)}), good[1]]))


MADE = {"line_of_65_mib.jsonl": write_a_line_of_65_mib, "folder_without_data": Path.mkdir}


@pytest.fixture
def command(tmp_path):
    """The arguments of ``isotrain prepare`` for a case."""

    def build(case: dict) -> list[str]:
        path = HERE / case["file"]
        if make := MADE.get(case["file"]):
            path = tmp_path / case["file"]
            make(path)
        option = next((f"data={OPTIONS[suffix]}" for suffix in path.suffixes if suffix in OPTIONS), "")
        arguments = [argument for argument in case.get("args", []) if argument.startswith("data=")] or [option]
        arguments += [argument for argument in case.get("args", []) if not argument.startswith("data=")]
        return [*arguments, f"data.path={path}", f"data.cache_dir={tmp_path / 'cache'}", *SETTINGS]

    return build


def name_of(case: dict) -> str:
    return " ".join([case["file"], *case.get("args", [])])


PREPARED = [case for case in CASES if "refused" not in case]
REFUSED = [case for case in CASES if "refused" in case]


@pytest.mark.parametrize("case", PREPARED, ids=name_of)
def test_what_is_good_arrives_and_what_is_bad_is_counted(case, command, capsys, caplog):
    arguments = command(case)
    assert cli.main(["prepare", *arguments]) == 0
    printed = capsys.readouterr()
    assert f"{case['good']:,} to train on" in printed.out
    config = load(arguments, None)
    corpus = prepare(config.data, config.objective.needs(config.data.sequence_length, config.data.target_length), quiet=True)
    assert corpus.bad_kinds == case["bad"]
    assert corpus.num_bad == sum(case["bad"].values())
    assert corpus.counts["train"]["documents"] == case["good"]
    assert sum("must arrive" in text for text in first_texts(corpus)) == case["good"]
    if case["bad"]:
        assert f"Skipped {corpus.num_bad} bad record(s): " in caplog.text
        assert all(f"{number} {kind}" in caplog.text for kind, number in case["bad"].items())
        assert f"{case['file']}:" in caplog.text


def first_texts(corpus: Corpus) -> list[str]:
    """The first field of every record that is trained on, read back."""
    tokenizer, vocabulary = load_tokenizer(corpus.tokenizer_folder)
    tokens, starts = open_stream(corpus.folder, f"train.{next(iter(corpus.needs.fields))}", vocabulary.size)
    return [tokenizer.decode(ids.tolist()) for ids in np.split(tokens, starts[1:])]


@pytest.mark.parametrize("case", REFUSED, ids=name_of)
def test_what_cannot_be_read_is_refused_in_one_sentence(case, command, capsys, tmp_path):
    arguments = command(case)
    assert cli.main(["prepare", *arguments]) == 2
    report = capsys.readouterr().err
    said = report[report.index("isotrain: refused, 1 problem:") :]
    assert [words for words in case["refused"] if words not in said] == [], said
    assert "Traceback" not in report
    assert said.count("\n") == 3
    assert not list((tmp_path / "cache").glob("*/metadata.json")), "nothing half-prepared is left"


def test_every_file_has_a_case():
    named = {case["file"] for case in CASES}
    assert {path.name for path in HERE.iterdir() if not path.name.startswith(".")} <= named
    assert len({case["file"] for case in CASES if case.get("bad") or "refused" in case}) >= 30
