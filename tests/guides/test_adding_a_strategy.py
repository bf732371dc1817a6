"""docs/adding-a-strategy.md word for word: its files are written and installed, its commands pass the gates, its tests pass."""

import importlib.util
import inspect
import subprocess
import sys

import pytest

from tests.guides.pages import ROOT, blocks, check_command, commands
from trainer import config

PAGE = ROOT / "docs/adding-a-strategy.md"
TESTS = [line[4:].split("(")[0] for block in blocks(PAGE) for line in block.text.splitlines() if line.startswith("def test_")]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with every file that the page names, and the plugin installed beside it."""
    folder = tmp_path_factory.mktemp("project")
    for block in blocks(PAGE):
        if block.language != "sh":
            assert block.file is not None, block.text
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.text)
    options = [
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--disable-pip-version-check",
        "--target",
        folder / "installed",
    ]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, folder], check=True, timeout=120)
    return folder


@pytest.fixture
def installed(project, monkeypatch):
    """The plugin as an installed package for one test; ranks inherit the path."""
    monkeypatch.syspath_prepend(project / "installed")
    yield project
    sys.modules.pop("isotrain_nodes", None)
    config.REGISTERED["strategy"].pop("node_fsdp", None)


def test_the_page_names_its_files(project):
    assert {block.file for block in blocks(PAGE) if block.language != "sh"} == {
        "my_configs/strategy/ddp_large_buckets.yaml",
        "isotrain_nodes.py",
        "pyproject.toml",
        "train.py",
        "test_nodes.py",
    }


def test_every_command_passes_the_gates(installed, monkeypatch):
    monkeypatch.chdir(installed)
    assert len(commands(PAGE)) == 2
    for words in commands(PAGE):
        check_command(words, made=set())


def test_the_preset_sets_what_it_says(installed):
    strategy = config.load(["strategy=ddp_large_buckets"], 2, installed / "my_configs").strategy
    assert (strategy.name, strategy.bucket_mb, strategy.kind) == ("ddp_large_buckets", 100, "ddp")


def test_the_plugin_needs_no_torch_to_be_checked(project):
    source = "import sys, isotrain_nodes; isotrain_nodes.register(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], cwd=project, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_a_train_py_of_ones_own_offers_it(project):
    command = [sys.executable, "train.py", "--cfg", "job", "strategy=node_fsdp", "strategy.ranks_per_node=2"]
    done = subprocess.run(command, cwd=project, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert "ranks_per_node: 2" in done.stdout, done.stderr


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if "moves" in name else ()) for name in TESTS])
def test_its_proof_holds(installed, tmp_path, name):
    spec = importlib.util.spec_from_file_location("test_nodes", installed / "test_nodes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name)
    given = {"tmp_path": tmp_path, "tiny": inspect.unwrap(module.tiny)(tmp_path)}
    function(**{argument: given[argument] for argument in inspect.signature(function).parameters})
