"""What many tests share: a small real corpus, prepared once per session, and the command line of a tiny run over it."""

import os
import shutil
import sysconfig
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

CORPUS = ("argparse.py", "ast.py", "calendar.py", "configparser.py", "dataclasses.py", "difflib.py", "inspect.py", "typing.py")


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory) -> Path:
    """Half a megabyte of Python's standard library."""
    folder = tmp_path_factory.mktemp("corpus")
    for name in CORPUS:
        shutil.copy(Path(sysconfig.get_path("stdlib")) / name, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(corpus_folder, tmp_path_factory) -> list[str]:
    """Overrides of a corpus of paragraphs: many documents per row, so that counts of targets differ from row to row."""
    return [
        "data=text",
        f"data.path={corpus_folder}",
        "data.document=paragraph",
        "data.sequence_length=32",
        "data.tokenizer.vocab_size=512",
        f"data.cache_dir={tmp_path_factory.mktemp('cache')}",
    ]


@pytest.fixture(scope="session")
def record_data(corpus_folder, tmp_path_factory) -> list[str]:
    """Overrides of the same paragraphs as padded records: pairs of texts, classes, several classes, numbers."""
    from tests.contracts.tasks import write_records

    file = write_records(corpus_folder, tmp_path_factory.mktemp("records") / "paragraphs.jsonl")
    return [
        "data=jsonl",
        f"data.path={file}",
        "data.sequence_length=48",
        "data.target_length=16",
        "data.validation_fraction=0.1",
        "data.tokenizer.vocab_size=512",
        f"data.cache_dir={tmp_path_factory.mktemp('cache')}",
    ]


@pytest.fixture(scope="session")
def task(tiny_data, tiny, record_data, tmp_path_factory):
    """Overrides of the tiny run of any name in tests.contracts.tasks."""
    from tests.contracts.tasks import CLIPPED, RECORDS, SHAPE, STEADY, TEXT, write_bert

    common = [argument for argument in tiny if argument not in tiny_data and argument not in SHAPE]
    berts = []

    def arguments(name: str) -> list[str]:
        if name in TEXT:
            return [*tiny_data, *common, *SHAPE, *TEXT[name], *(STEADY if "spans" in name else [])]
        writes = "objective=seq2seq" in RECORDS[name]
        data = record_data if writes else [item for item in record_data if "target_length" not in item]
        unclipped = [item for item in common if "max_grad_norm" not in item]
        run = [*data, *unclipped, *RECORDS[name], *STEADY, *CLIPPED, *(["train.evaluate_generate=2"] if writes else [])]
        if name != "two berts":
            return [*run, *SHAPE]
        if not berts:
            berts.append(write_bert([*tiny_data, *common], tmp_path_factory.mktemp("bert")))
        return [*run, f"model.encoder={berts[0]}"]

    return arguments


@pytest.fixture(scope="session")
def tiny(tiny_data) -> list[str]:
    """Overrides of a run that takes a second: two blocks of width 32, fp32, 20 steps, clipping on."""
    return [
        *tiny_data,
        "model.hidden_size=32",
        "model.num_layers=2",
        "precision=fp32",
        "train.steps=20",
        "train.micro_batch=16",
        "optimizer.warmup_steps=4",
        "optimizer.max_grad_norm=0.5",
        "checkpoint.every=null",
        "sample.max_new_tokens=4",
        "run.quiet=true",
        "run.device=cpu",
    ]
