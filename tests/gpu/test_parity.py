"""One GPU has the CPU's curve, and over NCCL at world size 1 every strategy has that of ``single``."""

import json

import pytest

from tests.contracts.tasks import NAMES, SPREAD
from tests.contracts.test_background import in_both_modes
from trainer.testing import assert_same_curve, last_wins, read_curve, run_ranks, train_curve, train_here

FSDP = ["+strategy=fsdp"]
STRATEGIES = {
    "ddp": ["+strategy=ddp"],
    "fsdp": FSDP,
    "fsdp, gathered once": [*FSDP, "strategy.reshard_after_forward=false"],
    "fsdp, reduced once": [*FSDP, "strategy.reduce_every_micro_batch=false", "train.micro_batch=4"],
    "fsdp, offloaded": [*FSDP, "strategy.cpu_offload=true"],
    "zero1": ["strategy=zero1"],
    "zero2, offloaded": ["strategy=zero2", "strategy.offload_optimizer=cpu"],
    "zero3": ["strategy=zero3"],
    "zero3, nothing kept whole": ["strategy=zero3", SPREAD],
    "zero3, offloaded": ["strategy=zero3", SPREAD, "strategy.offload_optimizer=cpu", "strategy.offload_parameters=cpu"],
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("precision", "loss", "grad_norm"), [("fp32", 1e-4, 1e-3), ("bf16", 1e-2, 5e-2)])
def test_the_gpu_has_the_curve_of_the_cpu(curve, name, precision, loss, grad_norm):
    job = (f"precision={precision}",)
    assert_same_curve(curve(name, *job, "run.device=cuda"), curve(name, *job, "run.device=cpu"), loss=loss, grad_norm=grad_norm)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("task_name", ["llama", "roberta", "t5", "bart spans", "bert classes"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_over_nccl_every_strategy_has_the_curve_of_single(curve, name, task_name, precision):
    job = ("run.device=cuda", f"precision={precision}")
    loss, grad_norm = (1e-5, 1e-4) if precision == "fp32" else (1e-2, 5e-2)
    assert_same_curve(curve(task_name, *job, *STRATEGIES[name]), curve(task_name, *job), loss=loss, grad_norm=grad_norm)


def ddp_gradients():
    """The gradients of one module, plain and through DDP over NCCL; at world size 1 the engine itself leaves DDP out."""
    import copy
    import os

    import torch

    from trainer.distributed.degrees import Degrees
    from trainer.distributed.launch import read_launch
    from trainer.distributed.mesh import build_mesh
    from trainer.distributed.process_group import choose_device, start_process_group
    from trainer.parallel import ddp

    launch = read_launch(os.environ)
    device = choose_device("cuda", launch)
    start_process_group(launch, device, 60.0)
    mesh = build_mesh(Degrees(replicate=1, shard=1), device)
    torch.manual_seed(0)
    plain = torch.nn.Linear(16, 4).to(device)
    wrapped = ddp.replicate(copy.deepcopy(plain), mesh["replicate"], 25)
    batches = torch.randn(3, 8, 16, device=device)
    for number, batch in enumerate(batches):
        plain(batch).square().sum().backward()
        with ddp.accumulating(wrapped, number == len(batches) - 1):
            wrapped(batch).square().sum().backward()
    pairs = zip(plain.parameters(), wrapped.parameters(), strict=True)
    return [(a.grad.tolist(), b.grad.tolist()) for a, b in pairs]


def test_ddp_over_nccl_has_the_plain_gradients():
    for plain, replicated in run_ranks(ddp_gradients, 1)[0]:
        assert plain == replicated and any(plain)


def where_parameters_rest(arguments):
    """Trains, and says of each parameter, gradient-free at the end, on which device it lies and whether in pinned memory."""
    from trainer.distributed.sharding import local_part
    from trainer.engine.native import NativeEngine

    close, found = NativeEngine.close, []

    def close_and_look(self):
        found.extend((local_part(p).device.type, local_part(p).is_pinned()) for p in self._parameters)
        close(self)

    NativeEngine.close = close_and_look
    return train_here(arguments), found


@pytest.mark.parametrize(("offload", "place"), [("true", ("cpu", True)), ("false", ("cuda", False))])
def test_offloaded_parameters_rest_in_pinned_memory(tiny_gpu, tmp_path, offload, place):
    arguments = last_wins([*tiny_gpu, *FSDP, f"strategy.cpu_offload={offload}", "train.steps=6", f"run.dir={tmp_path / 'run'}"])
    ((code, found),) = run_ranks(where_parameters_rest, 1, arguments)
    assert code == 0 and set(found) == {place}


def test_a_run_moves_from_the_gpu_to_the_cpu_and_back(tiny, tmp_path, curve):
    run = tmp_path / "run"
    train_curve([*tiny, "run.device=cuda", *FSDP, "train.stop_after=7"], run)
    train_curve([*tiny, "run.device=cpu", "+strategy=single", "train.stop_after=14"], run)
    moved = train_curve([*tiny, "run.device=cuda", *FSDP, "strategy.cpu_offload=true"], run)
    assert_same_curve(moved, curve("run.device=cuda"), loss=1e-4, grad_norm=1e-3)


@pytest.mark.parametrize("name", ["fsdp", "fsdp, offloaded", "zero2, offloaded", "zero3"])
def test_a_checkpoint_written_in_the_background_has_the_bits_of_one_that_was_waited_for(tiny_gpu, tmp_path, name):
    in_both_modes([*tiny_gpu, *STRATEGIES[name], "train.steps=12", "checkpoint.every=4", "checkpoint.keep=null"], tmp_path, 1)


def test_the_record_names_the_gpu_and_its_memory(tiny_gpu, tmp_path):
    run = tmp_path / "run"
    train_curve(tiny_gpu, run)
    assert "cpu" not in json.loads((run / "passport.json").read_text())["device"].lower()
    # This model and its optimizer take about a megabyte; a process that has imported torch takes hundreds, which is what the CPU reports.
    assert all(1e5 < line["peak_memory_bytes"] < 1e8 for line in read_curve(run))
