"""The chunked head: the curve of the dense one under every engine, and no tensor of the size of all logits in a step."""

import json

import pytest
import torch

from tests.contracts.engines import build_engine, micro_batches
from tests.contracts.tasks import NAMES, SPREAD, layout
from tests.contracts.test_gradient import one_rank
from tests.unit.model.test_chunked import Largest
from trainer.testing import assert_same_curve, last_wins, run_ranks, train_curve
from trainer.types import StepPlan

__all__ = ["one_rank"]
CHUNKED = ["train.cross_entropy=chunked", "train.cross_entropy_chunk=7"]
"""A number that divides no number of targets."""
LAYOUTS = [
    *(("single", 1), ("ddp", 2), ("fsdp", 2), ("hsdp", 4), ("zero1", 2), ("zero2", 2), ("zero3", 2)),
    *(("tensor", 2), ("tensor x fsdp", 4), ("pipeline", 2), ("pipeline x fsdp", 4), ("3d", 4)),
]
WITH_HEAD = [name for name in NAMES if name.split()[-1] not in ("classes", "tags", "number")]
QUICK = {("llama", "fsdp", 2)}
CELLS = [(family, *place) for family in WITH_HEAD for place in LAYOUTS]


@pytest.mark.parametrize(
    ("family", "strategy", "ranks"), [pytest.param(*cell, marks=() if cell in QUICK else pytest.mark.slow) for cell in CELLS]
)
def test_chunks_have_the_curve_of_the_dense_head(task, tmp_path, one_rank, family, strategy, ranks):
    arguments = [*task(family), "train.micro_batch=4", *layout(strategy), *CHUNKED, *([SPREAD] if strategy == "zero3" else [])]
    assert_same_curve(train_curve(arguments, tmp_path / "run", ranks), one_rank(family), loss=1e-5, grad_norm=1e-4)


@pytest.mark.parametrize(
    ("family", "strategy", "ranks"),
    [cell for cell in CELLS if cell[0] in ("llama", "bert")],
)
@pytest.mark.slow
def test_in_bf16_they_stay_near_it(task, tmp_path, one_rank, family, strategy, ranks):
    arguments = [*task(family), "precision=bf16", "train.micro_batch=4", *layout(strategy), *CHUNKED]
    arguments += [SPREAD] if strategy == "zero3" else []
    curve = train_curve(arguments, tmp_path / "run", ranks)
    assert_same_curve(curve, one_rank(family, "precision=bf16"), loss=1e-2, grad_norm=5e-2)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["interleaved_1f1b", "interleaved_zero_bubble", "zbv"])
def test_every_schedule_goes_back_through_it(task, tmp_path, one_rank, schedule):
    more = ["model.num_layers=4", "train.micro_batch=4", *layout("pipeline")]
    reference = one_rank("llama", "model.num_layers=4")
    curve = train_curve([*task("llama"), *more, f"strategy.schedule={schedule}", *CHUNKED], tmp_path / "run", 2)
    assert_same_curve(curve, reference, loss=1e-5, grad_norm=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("more", ["train.activation_checkpointing=full", "model.tie_embeddings=false"])
def test_it_goes_with_what_else_there_is(task, tmp_path, more):
    dense, chunked = (train_curve([*task("llama"), more, *own], tmp_path / str(len(own))) for own in ([], CHUNKED))
    assert_same_curve(chunked, dense, loss=1e-5, grad_norm=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "ranks"), [("single", 1), ("tensor", 2)])
def test_evaluation_says_the_same(task, tmp_path, strategy, ranks):
    def evaluation(*own):
        folder = tmp_path / str(len(own))
        train_curve([*task("bert"), "data.validation_fraction=0.1", f"strategy={strategy}", *own], folder, ranks)
        (line,) = [line for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if line["kind"] == "evaluate"]
        return line

    dense, chunked = evaluation(), evaluation(*CHUNKED)
    assert chunked["masked_accuracy"] == dense["masked_accuracy"] > 0
    assert chunked["loss"] == pytest.approx(dense["loss"], rel=1e-5)


def test_a_rank_that_has_no_held_out_sample_of_its_own_evaluates(task, tmp_path):
    """Of 5 samples in blocks of 4, the second block leaves the second rank none."""
    few = [*task("bert"), "strategy=ddp", "train.steps=2", "optimizer.warmup_steps=1", "train.micro_batch=2", "train.evaluate_samples=5"]
    lines = []
    for own in ([], CHUNKED):
        folder = tmp_path / str(len(own))
        train_curve(last_wins([*few, "data.validation_fraction=0.1", *own]), folder, 2)
        read = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        lines += [line for line in read if line["kind"] == "evaluate"]
    assert lines[1]["masked_accuracy"] == lines[0]["masked_accuracy"]
    assert lines[1]["loss"] == pytest.approx(lines[0]["loss"], rel=1e-5)


def largest_of_a_step(arguments):
    """On a rank: the most elements of a tensor in a step, and those of all logits of a micro-batch."""
    job, engine = build_engine(arguments)
    batches = micro_batches(job, engine, 1)
    with Largest() as largest:
        engine.forward_backward(1, batches, {"targets": torch.tensor(100.0)})
        engine.optimizer_step(StepPlan(1, 1.0, 0.5))
    return largest.numel, max(batch.labels.numel() for batch in batches) * job.corpus.vocabulary.size


@pytest.mark.parametrize("family", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "t5", "bart"))])
def test_no_tensor_of_a_step_has_the_size_of_all_logits(task, family):
    narrow = [] if family == "gpt2" else ["model.intermediate_size=64"]
    arguments = last_wins([*task(family), *narrow, "data.tokenizer.vocab_size=1500", "train.micro_batch=16"])
    ((dense, logits),) = run_ranks(largest_of_a_step, 1, arguments)
    ((chunked, _),) = run_ranks(largest_of_a_step, 1, [*arguments, "train.cross_entropy=chunked", "train.cross_entropy_chunk=32"])
    assert dense == logits
    assert chunked < 0.4 * logits
