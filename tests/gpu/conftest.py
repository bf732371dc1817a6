"""These tests exist only where CUDA is: elsewhere they are not collected at all."""

import os

# Asking for CUDA through its driver library keeps CUDA itself uninitialised, so that ranks can still be forked.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

import pytest
import torch

from trainer.testing import train_curve

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]


@pytest.fixture(scope="session")
def tiny_gpu(tiny) -> list[str]:
    """The tiny run on one GPU."""
    return [*tiny, "run.device=cuda"]


@pytest.fixture(scope="session")
def curve(task, tmp_path_factory):
    """The curve of a task (tests.contracts.tasks) with overrides, trained once per session."""
    curves = {}

    def curve(name, *more):
        if (name, more) not in curves:
            curves[name, more] = train_curve([*task(name), *more], tmp_path_factory.mktemp("curve"))
        return curves[name, more]

    return curve
