"""Moments in bf16: a curve near that of fp32 moments, bitwise resume, and checkpoints that runs with either kind go on from."""

from functools import partial

import pytest
import torch

from tests.contracts.tasks import SPREAD, layout
from tests.contracts.test_state import stopped_and_not, tensors_of
from trainer.testing import assert_same_curve, last_wins, run_ranks, train_curve

HALF = "optimizer.moments=bf16"
LAYOUTS = [("single", 1), ("ddp", 2), ("fsdp", 2), ("hsdp", 4), ("tensor", 2), ("pipeline", 2), ("3d", 4)]
OFFLOADED = ("fsdp", 2, "strategy.cpu_offload=true")
CELLS = [*((family, *place) for family in ("llama", "bert", "t5") for place in LAYOUTS), ("llama", *OFFLOADED)]
QUICK = ("llama", "single", 1)


@pytest.mark.parametrize("cell", [cell if cell == QUICK else pytest.param(cell, marks=pytest.mark.slow) for cell in CELLS])
def test_the_curve_stays_near_that_of_fp32_moments(task, tmp_path, cell):
    family, strategy, ranks, *more = cell
    arguments = [*task(family), "train.micro_batch=4", *layout(strategy), *more]
    fp32 = train_curve(arguments, tmp_path / "fp32", ranks)
    half = train_curve([*arguments, HALF], tmp_path / "half", ranks)
    assert [line["loss"] for line in half[2:]] != [line["loss"] for line in fp32[2:]]
    assert_same_curve(half, fp32, loss=2e-4, grad_norm=1e-2)


@pytest.mark.parametrize(
    ("strategy", "ranks"), [place if place == QUICK[1:] else pytest.param(*place, marks=pytest.mark.slow) for place in LAYOUTS]
)
def test_a_stopped_run_goes_on_bitwise(tiny, tmp_path, strategy, ranks):
    stopped_and_not([*tiny, *layout(strategy), "train.micro_batch=4", HALF], tmp_path, ranks)


def read_back(arguments, folder):
    """On each rank: the state of an engine that has loaded ``folder``, as fp32."""
    from tests.contracts.engines import build_job, whole
    from trainer.assembly import build_engine
    from trainer.state.storage import read_state

    engine = build_engine(build_job(arguments), resumed=True)
    engine.load_state(partial(read_state, folder))
    return {name: whole(value.float()).numpy() for name, value in engine.state().items()}


@pytest.mark.parametrize(
    ("strategy", "ranks"),
    [pytest.param(*place, marks=() if place == ("fsdp", 2) else pytest.mark.slow) for place in (*LAYOUTS, ("zero3", 2))],
)
def test_either_kind_reads_what_the_other_wrote(tiny, tmp_path, strategy, ranks):
    own = last_wins([*tiny, *layout(strategy), "train.micro_batch=4", *([SPREAD] if strategy == "zero3" else [])])
    for written, kind in (([], torch.float32), ([HALF], torch.bfloat16)):
        run = tmp_path / str(kind)
        train_curve([*tiny, "strategy=ddp", "train.stop_after=3", *written], run, 2)
        tensors = tensors_of(run, 3)
        assert {tensor.dtype for name, tensor in tensors.items() if ".exp_avg" in name} == {kind}
        for read in ([], [HALF]) if "zero" not in strategy else ([],):
            (found, *_) = run_ranks(read_back, ranks, [*own, *read], str(run / "checkpoints" / "step-3"))
            for name, value in found.items():
                expected = tensors[name].bfloat16() if read and ".exp_avg" in name else tensors[name]
                assert torch.equal(torch.from_numpy(value), expected.float()), name
