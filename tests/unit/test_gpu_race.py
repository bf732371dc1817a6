"""What the GPU benchmarks make of their numbers, and that each can be rehearsed where there is no GPU."""

import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def race():
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("gpu_race")
    sys.path.remove(str(BENCHMARKS))


def numbers(**ours):
    return {"isotrain": ours, "loop": {"speed": 100.0, "seconds": 1.0}}


def test_a_goal_is_a_bound_on_ours_or_on_ours_beside_another(race):
    alone = race.Goal("speed", at_least=90).judge(numbers(speed=95.0))
    assert (alone["value"], alone["met"]) == (95.0, True)
    assert race.Goal("speed", "loop", at_least=0.99).judge(numbers(speed=95.0))["met"] is False
    beyond = race.Goal("seconds", "loop", at_most=0.5, beyond=True).judge(numbers(seconds=1.25))
    assert (beyond["value"], beyond["met"]) == (0.25, True)


def test_a_goal_against_somebody_absent_is_not_judged(race):
    judged = race.Goal("speed", "liger", at_least=1).judge(numbers(speed=95.0))
    assert judged["value"] is None and "met" not in judged


def test_contenders_that_train_something_else_stop_the_race(race):
    question = importlib.import_module("gpu_gpt2").QUESTION
    answers = {"isotrain": {"losses": [5.0] * 20}, "loop": {"losses": [5.0] * 19 + [5.2]}}
    with pytest.raises(SystemExit, match="loop: its losses differ from ours by 4"):
        race.gate(answers, question)
    assert race.gate(answers, replace(question, tolerance=0.05))["loop"] == pytest.approx(0.04)


def test_numbers_are_medians_after_the_warm_up(race):
    interval = {
        "targets": 1000,
        "slots": 2000,
        "peak_memory_bytes": 7,
        "command_seconds": 9.0,
        "losses": [],
        "mfu": [None] * 20 + [0.4] * 40,
    }
    found = race.summary(
        [interval | {"seconds": [50.0, 50.0, 2.0, 2.0, 4.0, 2.0]}, interval | {"seconds": [50.0, 50.0, 1.0, 1.0, 1.0, 1.0]}]
    )
    assert found["rounds"] == [5000.0, 10000.0] and found["tokens_per_second"] == 7500.0 and found["spread"] == 1.0
    assert found["slots_per_second"] == 15000.0 and found["mfu"] == 0.4


QUICK = "gpu_probe"
NAMES = sorted(path.stem for path in BENCHMARKS.glob("gpu_*.py") if path.stem not in ("gpu_race", "gpu_contenders", "gpu_data"))


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == QUICK else pytest.mark.slow) for name in NAMES])
def test_each_runs_at_a_tiny_size_without_a_gpu(name):
    before = sorted((BENCHMARKS / "results").iterdir())
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--rehearse"]
    done = subprocess.run(command, cwd=BENCHMARKS.parent, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rehearsed: nothing is written" in done.stdout
    assert sorted((BENCHMARKS / "results").iterdir()) == before


def test_the_page_names_each():
    page = (BENCHMARKS / "README.md").read_text()
    assert all(f"benchmarks/{name}.py" in page for name in NAMES)
