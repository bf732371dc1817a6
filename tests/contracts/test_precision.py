"""Precision: what docs/precision.md says is what live tensors are, under every strategy."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from tests.contracts.engines import build_engine, micro_batches, whole
from tests.contracts.tasks import layout as overrides
from trainer.precision.dtypes import NAMES
from trainer.testing import last_wins, run_ranks, train_curve

LAYOUTS = [("single", 1), ("ddp", 2), ("fsdp", 2), ("hsdp", 4)]
TENSOR = [("tensor", 2), ("tensor x fsdp", 4), ("tensor x ddp", 4)]
PAGE = Path(__file__).parents[2] / "docs" / "precision.md"


def documented(precision):
    """The page's table: the type of each number that has a name in the passport, and of those that have none by their first word."""
    column = {"fp32": 2, "bf16": 3}[precision]
    rows = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in PAGE.read_text().splitlines() if line.startswith("|")]
    rows = [cells for cells in rows if len(cells) == 4 and cells[2] in ("fp32", "fp64")]
    return {re.sub("`", "", cells[1]) if cells[1] != "-" else cells[0].split()[0]: cells[column] for cells in rows}


class Watch(TorchFunctionMode):
    """Records the types of logits and of the numbers that the loss is made of."""

    def __init__(self, num_ids):
        super().__init__()
        self.num_ids, self.seen = num_ids, {}

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if function is torch.nn.functional.linear and result.shape[-1] == self.num_ids:
            self.seen["logits"] = NAMES[result.dtype]
        if function is torch.nn.functional.cross_entropy:
            self.seen["log-softmax"] = NAMES[arguments[0].dtype]
            assert result.dtype == arguments[0].dtype
        if function is torch.Tensor.exp and result.shape[-1] == self.num_ids:  # as parallel/vocabulary.py has it
            self.seen["log-softmax"] = NAMES[result.dtype]
        return result


def observed(arguments):
    """On a rank: the types of everything in a step, by the names of the page."""
    job, engine = build_engine(arguments)
    batches = micro_batches(job, engine, 1)
    words = job.corpus.vocabulary.size // job.config.strategy.degrees(job.launch.world_size).tensor
    with Watch(words) as watch:
        terms = engine.forward_backward(1, batches, {"targets": torch.tensor(100)})
    assert len({term.sum.dtype for term in terms.values()} | {engine._squared_norm.dtype, torch.float64}) == 1
    buffers = {NAMES[buffer.dtype] for buffer in engine._parts.model.buffers() if buffer.is_floating_point()}
    score, _ = engine.score(batches[0])
    assert all(term.sum.dtype == torch.float32 for term in score.values())
    return {**engine.dtypes(), **watch.seen, "loss": "fp64", "buffers": " and ".join(buffers)}


@pytest.mark.parametrize(
    ("strategy", "ranks", "precision"),
    [
        pytest.param(*layout, precision, marks=pytest.mark.slow if precision == "fp32" and layout[0] in ("ddp", "hsdp") else ())
        for layout in LAYOUTS
        for precision in ("fp32", "bf16")
    ]
    + [pytest.param(*cell, precision, marks=pytest.mark.slow) for cell in TENSOR for precision in ("fp32", "bf16")],
)
def test_live_tensors_are_what_the_page_says(tiny, strategy, ranks, precision):
    expected = documented(precision)
    assert {"masters", "compute", "activations", "gradients", "moments", "logits", "log-softmax", "loss", "buffers"} <= expected.keys()
    for seen in run_ranks(observed, ranks, last_wins([*tiny, *overrides(strategy), f"precision={precision}"])):
        assert seen == {key: expected[key] for key in seen}
        assert len(seen) == 9


def test_the_passport_shows_what_is(tiny, tmp_path):
    train_curve([*tiny, "+strategy=fsdp", "precision=bf16", "train.stop_after=1"], tmp_path / "run", 2)
    dtypes = json.loads((tmp_path / "run" / "passport.json").read_text())["dtypes"]
    assert dtypes == {key: documented("bf16")[key] for key in ("masters", "compute", "activations", "gradients", "moments")}


def accumulated(arguments):
    """On a rank: how far the gradient of 16 micro-batches is from the fp64 sum of each one's own, relatively."""
    job, engine = build_engine(arguments)
    optimizer, batches = engine._parts.optimizer, micro_batches(job, engine, 1, size=1)
    counts = {"targets": torch.tensor(500)}

    def gradient(some):
        engine.forward_backward(1, some, counts)
        flat = torch.cat([whole(parameter.grad).double().flatten() for _, parameter in engine._named])
        optimizer.zero_grad(set_to_none=True)
        return flat

    exact = sum(gradient([batch]) for batch in batches)
    return len(batches), float((gradient(batches) - exact).norm() / exact.norm())


@pytest.mark.parametrize(
    ("strategy", "ranks", "more"),
    [
        ("single", 1, []),
        ("ddp", 2, []),
        ("fsdp", 2, []),
        pytest.param("fsdp", 2, ["strategy.reduce_every_micro_batch=false"], marks=pytest.mark.slow),
        pytest.param("hsdp", 4, [], marks=pytest.mark.slow),
        pytest.param("hsdp", 4, ["strategy.reduce_every_micro_batch=false"], marks=pytest.mark.slow),
    ],
)
def test_gradients_of_many_micro_batches_are_summed_in_fp32(tiny, strategy, ranks, more):
    arguments = last_wins([*tiny, f"+strategy={strategy}", "precision=bf16", f"train.global_batch={16 * ranks}", *more])
    for number, error in run_ranks(accumulated, ranks, arguments):
        assert number == 16
        assert error < 1e-6, "sums kept in bf16 would be off by about 1e-3"
