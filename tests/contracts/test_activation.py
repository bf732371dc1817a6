"""Activation checkpointing: the same bits out of less memory, under every engine."""

import pytest
import torch

from tests.contracts.engines import build_engine, micro_batches
from tests.contracts.tasks import SPREAD, layout
from trainer.parallel.stages import SPLIT
from trainer.testing import last_wins, run_ranks, train_curve

FULL, SELECTIVE = "train.activation_checkpointing=full", "train.activation_checkpointing=selective"
DROPS = {"bert": ["model.dropout=0.1"], "t5": ["model.dropout=0.1"], "bart": ["model.dropout=0.1", "model.attention_dropout=0.1"]}
CELLS = [
    *((family, "single", 1, (kind,)) for family in ("llama", "gpt2", "bert", "roberta", "t5", "bart") for kind in (FULL, SELECTIVE)),
    *(("llama", name, ranks, (FULL,)) for name, ranks in (("ddp", 2), ("fsdp", 2), ("hsdp", 4), ("zero1", 2), ("zero3", 2), ("tensor", 2))),
    *(("llama", name, ranks, (SELECTIVE,)) for name, ranks in (("fsdp", 2), ("zero3", 2), ("tensor", 2), ("pipeline", 2), ("3d", 4))),
    *(("t5", name, 2, (FULL,)) for name in ("fsdp", "zero3", "tensor", "pipeline")),
    ("bart", "pipeline x fsdp", 4, (FULL,)),
    ("bert", "tensor x fsdp", 4, (FULL,)),
    ("gpt2", "tensor", 2, (SELECTIVE,)),
    ("bert", "tensor", 2, (FULL, "strategy.sequence_parallel=true")),
    ("llama", "pipeline", 2, (FULL, "model.num_layers=4", "strategy.schedule=interleaved_1f1b")),
    *(("llama", "pipeline", 2, (FULL, "model.num_layers=4", f"strategy.schedule={name}")) for name in SPLIT),
    ("llama", "pipeline x fsdp", 4, (FULL, "model.num_layers=4", "strategy.schedule=zbv", "precision=bf16")),
    ("llama", "fsdp", 2, (FULL, "train.activation_checkpointing_every=2", "precision=bf16")),
]
QUICK = [("llama", "fsdp", 2, (SELECTIVE,)), ("t5", "single", 1, (FULL,))]


@pytest.mark.parametrize("cell", [cell if cell in QUICK else pytest.param(cell, marks=pytest.mark.slow) for cell in CELLS], ids=str)
def test_what_is_computed_again_has_the_same_bits(task, tmp_path, cell):
    family, strategy, ranks, more = cell
    arguments = [*task(family), *DROPS.get(family, []), *layout(strategy), *([SPREAD] if strategy == "zero3" else []), "train.steps=6"]
    own = [item for item in more if "checkpointing" not in item]
    plain = train_curve([*arguments, *own], tmp_path / "plain", ranks)
    again = train_curve([*arguments, *more], tmp_path / "again", ranks)
    assert [(one["loss"].hex(), one["grad_norm"].hex()) for one in again] == [(one["loss"].hex(), one["grad_norm"].hex()) for one in plain]


def kept_bytes(arguments):
    """On a rank: the bytes that a forward of one micro-batch keeps for the backward, parameters apart."""
    job, engine = build_engine(arguments)
    (batch, *_) = micro_batches(job, engine, 1)
    before = {parameter.untyped_storage().data_ptr() for _, parameter in engine._parts.named}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in before:
            kept[storage.data_ptr()] = tensor, storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        engine._loop.terms(batch, engine._parts.trained)
    return sum(size for _, size in kept.values())


def test_less_is_kept(task):
    arguments = [*task("llama"), "model.num_layers=6", "data.tokenizer.vocab_size=300"]
    ways = ([], [FULL, "train.activation_checkpointing_every=2"], [FULL])
    none, half, full = (run_ranks(kept_bytes, 1, last_wins([*arguments, *way]))[0] for way in ways)
    assert full < 0.4 * none
    assert half - full == pytest.approx((none - full) / 2, rel=0.05)
