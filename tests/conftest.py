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
