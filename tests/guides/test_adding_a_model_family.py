"""docs/adding-a-model-family.md word for word: it is applied to a copy of the tree, and its commands and tests run there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guides.pages import ROOT, blocks, commands

PAGE = ROOT / "docs/adding-a-model-family.md"
COPIED = ("trainer", "configs", "tests", "docs", "train.py", "pyproject.toml", "README.md")
PART = (
    "tests/contracts/test_objectives_world.py",
    "tests/contracts/test_gradient.py::test_every_layout_has_the_curve_of_one_rank[electra-fsdp-3-2]",
    "tests/contracts/test_gradient.py::test_every_layout_has_the_curve_of_one_rank[electra-tensor-2-2]",
)
"""Of the page's last command, what takes seconds."""


def apply(diff: str, file: Path) -> None:
    """Does what a diff without line numbers says: its old lines stand in the file once, and become its new ones."""
    lines = diff.splitlines()
    assert all(line[0] in " +-" for line in lines), diff
    old, new = ("".join(f"{line[1:]}\n" for line in lines if line[0] in kinds) for kinds in (" -", " +"))
    text = file.read_text()
    places = [at for at in range(len(text)) if text.startswith(old, at) and (at == 0 or text[at - 1] == "\n")]
    assert len(places) == 1, f"{file.name} has the lines {len(places)} times that the page shows:\n{old}"
    file.write_text(text[: places[0]] + new + text[places[0] + len(old) :])


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the repository to which the page has been applied."""
    folder = tmp_path_factory.mktemp("tree")
    for name in COPIED:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name, **({"ignore": shutil.ignore_patterns("__pycache__")} if source.is_dir() else {}))
    file = None
    for block in blocks(PAGE):
        file = block.file or file  # a second block without a name of its own belongs to the same file
        if block.language == "diff":
            apply(block.text, folder / file)
        elif block.file:
            before = (folder / file).read_text() + "\n\n" if (folder / file).exists() else ""
            (folder / file).write_text(before + block.text)
    return folder


def run(words, tree, timeout=280):
    assert words[0] == "python"
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words[1:]], cwd=tree, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_what_it_says_of_the_stock_model_holds(tree):
    (block,) = [block for block in blocks(PAGE) if block.language == "python" and "print(model)" in block.text]
    assert "(generator_lm_head): Linear(in_features=16" in run(["python", "-c", block.text], tree)


def test_its_commands_do_what_they_say(tree, tmp_path):
    matrix, train, _ = commands(PAGE)
    assert " electra |" in run(matrix, tree)
    run([*train, f"data.cache_dir={tmp_path}"], tree)
    losses = [json.loads(line)["loss"] for line in (tree / "runs/electra/metrics.jsonl").read_text().splitlines() if '"train"' in line]
    assert len(losses) == 10 and losses[-1] < losses[0]


@pytest.mark.slow
def test_a_part_of_its_proof_holds(tree):
    *_, proof = commands(PAGE)
    assert all(any(test.startswith(folder) for folder in proof) for test in PART)
    options = proof[proof.index("-m", 3) :]
    said = run([*proof[:3], *PART, *options, "-p", "no:cacheprovider"], tree)
    assert " passed" in said and "failed" not in said


@pytest.mark.slow
def test_all_of_its_proof_holds(tree):
    *_, proof = commands(PAGE)
    assert " passed" in run([*proof, "-p", "no:cacheprovider"], tree, timeout=1800)
