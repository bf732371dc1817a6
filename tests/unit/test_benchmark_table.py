"""The numbers in benchmarks/README.md are those of the result files."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PAGE = (BENCHMARKS / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("benchmark_table", BENCHMARKS / "table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_results_say(table):
    assert table.with_table(PAGE, BENCHMARKS / "results") == PAGE, "run: python benchmarks/table.py"


def test_every_result_has_rows(table):
    rows = [line.split(" | ")[0].strip("| ") for line in table.table(BENCHMARKS / "results").splitlines()[2:]]
    assert set(rows) == set(table.ROWS)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("loader", ("shapes", 0, "tokens_per_second_per_core")),
        ("overhead", ("contenders", "isotrain", "median_over_hand_loop")),
        ("startup", ("commands", "help", "median")),
        ("default_run", ("training_seconds",)),
    ],
)
def test_another_measurement_makes_another_page(table, tmp_path, name, path):
    results = shutil.copytree(BENCHMARKS / "results", tmp_path / "results")
    content = json.loads((results / f"{name}.json").read_text())
    *parents, leaf = path
    holder = content
    for key in parents:
        holder = holder[key]
    holder[leaf] = 1234.5
    (results / f"{name}.json").write_text(json.dumps(content))
    assert table.with_table(PAGE, results) != PAGE


def test_a_missed_target_is_said(table, tmp_path):
    results = shutil.copytree(BENCHMARKS / "results", tmp_path / "results")
    content = json.loads((results / "overhead.json").read_text())
    for seconds, answer in ((1e-3, "| **no** |"), (1e-4, "| yes |")):
        content["contenders"]["isotrain"]["median_over_hand_loop"] = seconds
        (results / "overhead.json").write_text(json.dumps(content))
        (line,) = [line for line in table.table(results).splitlines() if "CPU time per step: isotrain" in line]
        assert answer in line


def test_every_gpu_test_is_listed():
    for path in (BENCHMARKS.parent / "tests" / "gpu").glob("test_*.py"):
        assert f"`tests/gpu/{path.name}`" in PAGE
