"""Real launches of accelerate and deepspeed: what their configs say reaches the run, and a run goes on without them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from trainer.distributed.launch import ADDRESS, RANKS
from trainer.testing import last_wins, read_curve, train_curve

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in (*RANKS, *ADDRESS)} | {
    "OMP_NUM_THREADS": "1",
    "PATH": f"{BIN}:{os.environ['PATH']}",
}


@pytest.fixture
def silent(tiny):
    """A tiny run that chooses neither strategy nor precision."""
    return [argument for argument in tiny if not argument.startswith("precision")]


def call(*command: str, **environment: str) -> subprocess.CompletedProcess:
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=300)
    done.stdout += done.stderr
    return done


def accelerate(name: str, *arguments: str) -> str:
    done = call("accelerate", "launch", "--config_file", f"launch/accelerate/{name}.yaml", "train.py", *arguments)
    assert done.returncode == 0, done.stdout
    return done.stdout


def close(curve: list[dict], other: list[dict], relative: float) -> bool:
    return [line["loss"] for line in curve] == pytest.approx([line["loss"] for line in other], rel=relative)


@pytest.mark.parametrize(
    ("name", "strategy", "precision", "told"),
    [
        ("cpu", "ddp", "fp32", ["ddp on 2 x CPU", "from accelerate's config: mixed_precision: no"]),
        pytest.param(
            "fsdp", "fsdp", "bf16", ["fsdp on 2 x CPU", "from accelerate's config: distributed_type: FSDP"], marks=pytest.mark.slow
        ),
        pytest.param(
            "zero3",
            "zero3",
            "bf16",
            ["zero3 on 2 x CPU", "from accelerate's config: zero_stage: 3", "compute bf16"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_shipped_file_starts_a_run_that_goes_on_without_it(name, strategy, precision, told, silent, tmp_path):
    run = tmp_path / "run"
    terminal = accelerate(name, *silent, f"run.dir={run}", "train.stop_after=10", "train.steps=20")
    assert [words for words in told if words not in terminal] == [], terminal
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["strategy"]["name"], config["precision"]["compute"]) == (strategy, precision)
    assert [line["step"] for line in read_curve(run)] == list(range(1, 11))

    whole = train_curve([*silent, f"strategy={'fsdp' if strategy == 'fsdp' else 'ddp'}", f"precision={precision}"], tmp_path / "alone", 2)
    curve = train_curve([*silent, "strategy=ddp", f"precision={precision}"], run, 2)
    assert len(curve) == 20 and close(curve, whole, 1e-2 if precision == "bf16" else 1e-5)


@pytest.mark.slow
def test_a_contradiction_is_reported_once_before_anything_is_started(silent, tmp_path):
    run = f"run.dir={tmp_path / 'run'}"
    done = call("accelerate", "launch", "--config_file", "launch/accelerate/zero3.yaml", "train.py", *silent, run, "strategy=ddp")
    assert done.returncode != 0
    assert (
        done.stdout.count("strategy=ddp contradicts zero_stage: 3 in accelerate's config") == done.stdout.count("Nothing was started.") == 1
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_one_process_of_accelerate_is_explained_and_its_advice_works(silent, tmp_path):
    done = call("accelerate", "launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "train.py", *silent)
    assert done.returncode != 0 and "launch/accelerate/cpu.yaml" in done.stdout and done.stdout.count("Nothing was started.") == 1
    lone = call("accelerate", "launch", "--cpu", "--num_processes", "1", "train.py", *silent, f"run.dir={tmp_path / 'run'}")
    assert lone.returncode == 0 and "single on 1 x CPU" in lone.stdout, lone.stdout


@pytest.mark.slow
def test_the_deepspeed_launcher(silent, tmp_path):
    arguments = last_wins([*silent, "precision=fp32", "strategy=zero2"])
    done = call("deepspeed", "--num_gpus", "2", "train.py", *arguments, f"run.dir={tmp_path / 'run'}", DS_ACCELERATOR="cpu")
    assert done.returncode == 0 and "--local_rank=1" in done.stdout and "zero2 on 2 x CPU" in done.stdout, done.stdout
    assert close(read_curve(tmp_path / "run"), train_curve([*silent, "precision=fp32", "strategy=ddp"], tmp_path / "ddp", 2), 1e-5)


def test_no_launcher_at_all(silent, tmp_path):
    """One rank by itself; and what it made is exported without a word of DeepSpeed's, which transformers imports by itself."""
    run = tmp_path / "run"
    done = call(
        sys.executable, "train.py", *silent, "precision=fp32", "strategy=zero3", "run.device=cpu", "train.stop_after=2", f"run.dir={run}"
    )
    assert done.returncode == 0, done.stdout
    exported = call("isotrain", "export", f"checkpoint={run}", f"to={tmp_path / 'model'}")
    for said in (done.stdout, exported.stdout):
        assert "WARNING" not in said and "Warning" not in said
    assert exported.returncode == 0 and (tmp_path / "model" / "model.safetensors").is_file()
