"""docs/adding-an-objective.md word for word: its files are written and installed, its command passes the gates, its tests pass."""

import importlib.util
import inspect
import subprocess
import sys

import pytest

from tests.guides.pages import ROOT, blocks, check_command, commands
from trainer import config

PAGE = ROOT / "docs/adding-an-objective.md"
TESTS = [line[4:].split("(")[0] for block in blocks(PAGE) for line in block.text.splitlines() if line.startswith("def test_")]
PIP = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with every file that the page names, and the plugin installed beside it."""
    folder = tmp_path_factory.mktemp("project")
    for block in blocks(PAGE):
        if block.language != "sh":
            assert block.file is not None, block.text
            (folder / block.file).write_text(block.text)
    subprocess.run([sys.executable, "-m", "pip", "install", *PIP, "--target", folder / "installed", folder], check=True, timeout=120)
    return folder


@pytest.fixture
def installed(project, monkeypatch):
    """The plugin as an installed package for one test; ranks inherit the path."""
    monkeypatch.syspath_prepend(project / "installed")
    yield project
    sys.modules.pop("isotrain_deletion", None)
    for name in ("token_deletion", "mean_deletion"):
        config.REGISTERED["objective"].pop(name, None)


def test_the_page_names_its_files(project):
    named = {block.file for block in blocks(PAGE) if block.language != "sh"}
    assert named == {"isotrain_deletion.py", "pyproject.toml", "test_deletion.py"}


def test_its_command_passes_the_gates(installed, monkeypatch):
    monkeypatch.chdir(ROOT)
    (words,) = commands(PAGE)
    check_command(words, made=set())


def test_the_plugin_needs_no_torch_to_be_checked(project):
    source = "import sys, isotrain_deletion; isotrain_deletion.register(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], cwd=project, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("name", TESTS)
def test_its_proof_holds(installed, tmp_path, name):
    spec = importlib.util.spec_from_file_location("test_deletion", installed / "test_deletion.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name)
    given = {"tmp_path": tmp_path, "tiny": inspect.unwrap(module.tiny)(tmp_path)}
    function(**{argument: given[argument] for argument in inspect.signature(function).parameters})
