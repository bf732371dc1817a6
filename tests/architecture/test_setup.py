"""The papers that set up a machine agree with each other."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_dependency_has_a_tested_version_within_its_range():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    extras = [line for name, extra in PROJECT["optional-dependencies"].items() if name != "all" for line in extra]
    for requirement in map(Requirement, PROJECT["dependencies"] + [line for line in extras if not line.startswith("isotrain[")]):
        assert requirement.specifier.contains(tested[requirement.name.lower()]), requirement


def test_all_extras_are_in_all():
    (everything,) = PROJECT["optional-dependencies"]["all"]
    assert Requirement(everything).extras == PROJECT["optional-dependencies"].keys() - {"all"}


def test_make_without_a_target_explains_every_target_and_makes_nothing(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    text = subprocess.run(["make"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert {line.split()[0] for line in text.splitlines()[1:]} == set(phony)
    assert [file.name for file in tmp_path.iterdir()] == ["Makefile"]


def test_a_machine_without_python_is_told_what_to_install(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("id", "grep", "touch"):
        (tools / name).symlink_to(shutil.which(name))
    make = subprocess.run([shutil.which("make"), "lint"], cwd=tmp_path, env={"PATH": str(tools)}, capture_output=True, text=True)
    assert make.returncode != 0
    assert "found no Python >= 3.11 with the venv module" in make.stderr
    assert not (tmp_path / ".venv").exists()
