"""The entry point as a process: fast, without torch, and one report under a launcher."""

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.distributed.launch import ADDRESS, RANKS

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in (*RANKS, *ADDRESS)} | {"OMP_NUM_THREADS": "1"}
COUNT_TORCH = """
import runpy, sys
sys.argv = ["train.py", *sys.argv[1:]]
try:
    runpy.run_path("train.py", run_name="__main__")
finally:
    print("HEAVY", [name for name in ("torch", "transformers", "numpy", "rich") if name in sys.modules])
"""


def _run(*command: str) -> tuple[subprocess.CompletedProcess, float]:
    """The finished process and its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["+train.stepz=5", "optimizer.lr=nan"], 2), (["--cfg", "job"], 0)])
def test_is_fast_and_loads_nothing_heavy(arguments, code):
    runs = [_run(sys.executable, "train.py", *arguments) for _ in range(5)]
    assert {done.returncode for done, _ in runs} == {code}
    assert statistics.median(seconds for _, seconds in runs) <= 1.0
    assert "HEAVY []" in _run(sys.executable, "-c", COUNT_TORCH, *arguments)[0].stdout


@pytest.mark.parametrize("command", [("train.py",), ("-m", "trainer", "train")])
def test_a_refusal_has_no_traceback(command):
    done, _ = _run(sys.executable, *command, "lr=1e-3")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "isotrain: refused, 1 problem:",
        "  - lr is not a key: did you mean optimizer.lr=1e-3?",
        "Nothing was started.",
    ]


def test_under_a_launcher_the_report_appears_once():
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    done, _ = _run(*launcher, "train.py", "strategy=single", "+train.stepz=5")
    assert done.returncode != 0
    text = done.stdout + done.stderr
    assert text.count("did you mean train.steps=5?") == 1
    assert text.count("Nothing was started.") == 1
    assert "this run has 4 ranks" in text


def test_a_rank_with_a_problem_of_its_own_says_so(monkeypatch, capsys):
    from trainer import cli

    monkeypatch.setattr(cli, "PATIENCE", 0.01)
    variables = {"RANK": "3", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err.startswith("rank 3 (local rank 1): isotrain: refused")
