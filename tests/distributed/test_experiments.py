"""Experiments really run on a CPU with debug=cpu."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trainer import config

ROOT = Path(__file__).parents[2]
EXPERIMENTS = config.folders().options("experiment")
TOLD = {
    "gpt2_stdlib": "perplexity",
    "gpt2_pretrain": "perplexity",
    "bert_pretrain": "masked_accuracy",
    "t5_pretrain": "perplexity",
    "t5_docstrings": "rouge_l",
    "minilm_vader": "accuracy",
    "debian_summaries": "rouge_l",
    "smollm2_mix": "domain/loss",
}
"""What each experiment's evaluation tells."""
FETCHING = ("minilm_vader", "debian_summaries", "smollm2_mix")
NO_NETWORK = re.compile("could not be downloaded|apt-get fetched no|does not have")


@pytest.mark.parametrize(
    "experiment", [name if name == "bert_pretrain" else pytest.param(name, marks=pytest.mark.slow) for name in EXPERIMENTS]
)
def test_it_runs_on_a_cpu(experiment, tmp_path, capfd):
    """As a user types it; those that fetch use the user's own cache, and skip where there is no network to fill it."""
    command = [sys.executable, "train.py", f"experiment={experiment}", "debug=cpu", f"run.dir={tmp_path / 'run'}"]
    if experiment not in FETCHING:
        command.append(f"data.cache_dir={tmp_path / 'cache'}")
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=900, check=False)
    said = capfd.readouterr().err
    if done.returncode == 2 and NO_NETWORK.search(said):
        pytest.skip(said)
    assert done.returncode == 0, said
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    (told,) = [line for line in lines if line["kind"] == "evaluate"]
    assert len(losses) == 10 and all(map(math.isfinite, losses))
    assert math.isfinite(told[TOLD[experiment]])
    assert (tmp_path / "run" / "checkpoints" / "step-10" / "manifest.json").is_file()
