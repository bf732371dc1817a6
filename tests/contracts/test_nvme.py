"""ZeRO-Infinity: what DeepSpeed swaps to a disk is trained, saved and moved like anything else, and what it needs is asked for first.

The model has 2.5 million parameters, of them 1 million in its embedding, because DeepSpeed swaps nothing below 1 MiB.
"""

import re
import shutil
import subprocess
import sys
from ctypes.util import find_library
from types import SimpleNamespace

import pytest
import torch

from tests.contracts.tasks import SPREAD
from tests.contracts.test_state import engine_state
from tests.contracts.test_zero import FROZEN, frozen
from trainer.config import load
from trainer.errors import Refused
from trainer.state.storage import read_tensors
from trainer.testing import assert_same_curve, last_wins, run_ranks, train_curve, train_here

OPTIMIZER, PARAMETERS = "strategy.offload_optimizer=nvme", "strategy.offload_parameters=nvme"
SWAPPED = {
    "optimizer": [OPTIMIZER],
    "both": [OPTIMIZER, PARAMETERS, SPREAD],
    "both, bf16": [OPTIMIZER, PARAMETERS, SPREAD, "precision=bf16"],
    "parameters": [PARAMETERS, SPREAD],
}
ALIKE = "strategy.deepspeed={{zero_optimization: {{sub_group_size: 300000, stage3_param_persistence_threshold: {}}}}}"
"""The same buffers in memory: norms are added up buffer by buffer."""

BUILD = "import sys; from tests.contracts.engines import build_job; build_job(sys.argv[1:])"


@pytest.fixture(scope="module")
def wide(tiny):
    """A run whose ranks hold several buffers of more than 1 MiB, and as much of the embedding."""
    return last_wins([*tiny, "model.hidden_size=256", "model.num_layers=2", "data.tokenizer.vocab_size=4096"])


@pytest.fixture(scope="module")
def swapping(wide, tmp_path_factory):
    """The command line of a run that swaps, by the name of what it does."""
    if find_library("aio") is None or shutil.which("g++") is None:
        pytest.skip("libaio or g++ is not installed: apt-get install libaio-dev g++")
    disk = tmp_path_factory.mktemp("disk")

    def arguments(name):
        return [*wide, "strategy=zero3", f"strategy.nvme_path={disk}", "strategy.bucket_elements=300000", *SWAPPED[name]]

    # What DeepSpeed compiles takes longer on a machine that is new to it than a test may.
    subprocess.run([sys.executable, "-c", BUILD, *arguments("both")], check=True)
    return arguments


def on_disk(arguments):
    """On a rank: builds the engine, and counts what is on the disk and what of the masters and moments is still in memory."""
    from pathlib import Path

    from tests.contracts.engines import build_engine

    _, engine = build_engine(arguments)
    partitions = engine._partitions
    kept = [*partitions.flats, *(value for flat in partitions.flats for value in partitions._zero.optimizer.state[flat].values())]
    scratch = Path(partitions._zero.optimizer_swapper.swap_folder)
    files = sum(path.stat().st_size for path in scratch.rglob("*.swp"))
    named = sum(value.held.numel() for name, value in engine.state().items() if name.startswith("model."))
    engine.close()
    return files, sum(value.nbytes for value in kept), named, scratch.exists()


@pytest.mark.slow
def test_masters_and_moments_lie_on_the_disk_and_nothing_is_left_there(swapping):
    """All but those of the last buffer, which is smaller than 1 MiB."""
    for files, in_memory, elements, left in run_ranks(on_disk, 2, last_wins(swapping("optimizer"))):
        assert 0.98 < (files + in_memory) / (12 * elements) < 1.1 and in_memory < 0.2 * files and not left


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SWAPPED))
def test_what_is_swapped_has_the_bits_of_what_stays_in_memory(swapping, tmp_path, name):
    arguments, run = swapping(name), tmp_path / "run"
    in_memory = [argument.replace("nvme", "cpu") for argument in arguments if "nvme_path" not in argument and argument != SPREAD]
    threshold = 0 if SPREAD in arguments else 100_000
    in_memory.append(ALIKE.format(threshold))
    reference = train_curve(in_memory, tmp_path / "reference", 2)
    train_curve([*arguments, "train.stop_after=7"], run, 2)
    saved = read_tensors(run / "checkpoints" / "step-7", "")
    for kept in run_ranks(engine_state, 2, last_wins(arguments), run / "checkpoints" / "step-7"):
        assert kept.keys() == saved.keys() and all(torch.equal(torch.from_numpy(kept[key]), saved[key]) for key in saved)
    bits = [[(line["loss"].hex(), line["grad_norm"].hex()) for line in curve] for curve in (train_curve(arguments, run, 2), reference)]
    assert bits[0] == bits[1]


@pytest.mark.slow
def test_frozen_parameters_lie_there_too(wide, swapping, tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    more = ["model.tie_embeddings=false"]
    for same, _ in run_ranks(frozen, 2, last_wins([*swapping("both"), *more]), None, tmp_path / "first"):
        assert [key for key, value in same.items() if value] == [f"model.{FROZEN}"]
    saved = read_tensors(tmp_path / "first", "")
    for _, before in run_ranks(frozen, 2, last_wins([*swapping("both"), *more]), tmp_path / "first", tmp_path / "second"):
        assert all(torch.equal(torch.from_numpy(before[key]), saved[key]) for key in before)


@pytest.mark.slow
def test_a_run_moves_to_the_disk_and_away_from_it(wide, swapping, tmp_path):
    reference = train_curve([*wide, "strategy=single"], tmp_path / "reference")
    for arguments, ranks, stop in (
        (["strategy=fsdp"], 2, 5),
        (swapping("both"), 4, 10),
        (["strategy=ddp"], 2, 15),
        (swapping("optimizer"), 2, 20),
    ):
        moved = train_curve([*wide, *arguments, f"train.stop_after={stop}"], tmp_path / "run", ranks)
    assert_same_curve(moved, reference, loss=1e-5, grad_norm=1e-4)


def test_what_swapping_needs_is_asked_for_before_ranks_meet(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.run.start_process_group", None)
    arguments = last_wins([*tiny, "strategy=zero3", OPTIMIZER, "model.hidden_size=256"])

    def refusal(path):
        with pytest.raises(Refused) as refused:
            train_here([*arguments, f"strategy.nvme_path={path}"])
        return str(refused.value)

    monkeypatch.setattr("trainer.engine.builds.shutil.which", lambda name: name)
    monkeypatch.setenv("CC", "false")
    assert "libaio and its headers are missing: apt-get install libaio-dev." in refusal(tmp_path)
    monkeypatch.setattr("trainer.engine.builds.shutil.which", lambda name: None)
    assert "there is no C++ compiler. Install one: apt-get install g++." in refusal(tmp_path)
    monkeypatch.setattr("trainer.engine.swapping.lockable", lambda: 8_000_000)
    assert re.search(r"locks \d+ MB of memory per rank, and this process may lock 8 MB: raise the limit \(ulimit -l", refusal(tmp_path))
    monkeypatch.setattr("trainer.engine.swapping.shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    assert "has 0.0 GB free, and the 1 ranks of this machine swap" in refusal(tmp_path)
    (tmp_path / "file").touch()
    assert f"strategy.nvme_path={tmp_path / 'file'} cannot be written to" in refusal(tmp_path / "file")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["strategy=zero3", OPTIMIZER], "strategy.offload_optimizer=nvme needs strategy.nvme_path"),
        (["strategy=zero2", OPTIMIZER, "strategy.nvme_path=here"], "strategy.offload_optimizer=nvme needs stage 3, which alone swaps"),
        (["strategy=zero3", "strategy.nvme_path=here"], "strategy.nvme_path=here is used by nothing"),
        (
            ["strategy=zero3", OPTIMIZER, "strategy.nvme_path=here", "strategy.deepspeed={zero_optimization: {sub_group_size: 3}}"],
            "zero_optimization.sub_group_size, which is derived",
        ),
    ],
)
def test_contradictions_about_swapping_are_refused_without_torch(tiny, more, says):
    with pytest.raises(Refused) as refused:
        load(last_wins([*tiny, *more]), 2)
    assert says in str(refused.value)
