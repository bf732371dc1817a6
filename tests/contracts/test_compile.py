"""Compiled blocks: no break in any graph, nothing compiled after warm-up, and the curve of the uncompiled run.

torch.compile is given ``fullgraph``, so a break is an error. Quick cells run what is traced as it is, without a compiler (torch's backend ``eager``).
"""

import json
from dataclasses import replace

import pytest
import torch

from tests.contracts.engines import build_engine, micro_batches
from tests.contracts.tasks import layout
from trainer.parallel import compiling
from trainer.testing import assert_same_curve, last_wins, run_ranks, train_curve, train_here
from trainer.types import StepPlan

COMPILED = "train.compile=true"
FAMILIES = ("llama", "gpt2", "bert", "roberta", "t5 spans", "bart spans", "t5", "bart")


def traced(arguments, backend, steps):
    """On a rank: loss and norm of each step; how many graphs there are after each; the breaks in them; how often a block was run as it is written.

    Every form of a batch comes in the first step: rows that hold one document, which need no mask, and rows that hold several.
    """
    from torch._dynamo.utils import counters

    compiling.BACKEND = backend
    job, engine = build_engine(arguments)
    curve, graphs = [], []
    for step in range(1, steps + 1):
        batches = micro_batches(job, engine, step)
        if step == 1:
            plain = {"position_ids", "lengths"}
            batches.append(replace(batches[0], inputs={name: t for name, t in batches[0].inputs.items() if name not in plain}))
        terms = engine.forward_backward(step, batches, {"targets": torch.tensor(100.0)})
        norm = engine.optimizer_step(StepPlan(step, 1.0, 0.5)).grad_norm
        engine.score(batches[-1])
        if step == 1:
            engine.score(batches[0])
        curve.append((sum(float(term.sum) for term in terms.values()), float(norm)))
        graphs.append(counters["stats"]["unique_graphs"])
    return curve, graphs, sum(counters["graph_break"].values())


WITHOUT_COMPILER = [("llama", "single", 1), ("llama", "fsdp", 2), ("t5", "fsdp", 2), ("llama", "tensor", 2), ("t5", "pipeline", 2)]
CELLS = [
    *((family, "single", 1, "eager") for family in FAMILIES),
    *((*cell, "eager") for cell in WITHOUT_COMPILER[1:]),
    *((family, "single", 1, "inductor") for family in FAMILIES),
]


@pytest.mark.parametrize(
    ("family", "strategy", "ranks", "backend"),
    [pytest.param(*cell, marks=() if cell == ("llama", "single", 1, "eager") else pytest.mark.slow) for cell in CELLS],
)
def test_nothing_is_compiled_after_warm_up(task, family, strategy, ranks, backend):
    arguments = last_wins([*task(family), "train.micro_batch=8", *layout(strategy)])
    plain = run_ranks(traced, ranks, arguments, backend, 8)
    for (curve, graphs, breaks), (expected, none, _) in zip(
        run_ranks(traced, ranks, [*arguments, COMPILED], backend, 8, timeout=500), plain, strict=True
    ):
        assert none == [0] * 8, "an uncompiled run compiles nothing"
        assert graphs[0] > 0 and graphs[-1] == graphs[1], f"graphs after each step: {graphs}"
        assert breaks == 0
        for ours, theirs in zip(curve, expected, strict=True):
            assert ours == pytest.approx(theirs, rel=0 if backend == "eager" else 1e-4)


FULL, SELECTIVE = (f"train.activation_checkpointing={kind}" for kind in ("full", "selective"))
SPLIT = [("tensor", 2), ("tensor x fsdp", 4), ("3d", 4)]
LAYOUTS = [("single", 1), ("ddp", 2), ("fsdp", 2), ("hsdp", 4), ("pipeline", 2), *SPLIT]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "ranks", "more"),
    [(*cell, more) for cell in LAYOUTS for more in ((), (FULL,), (SELECTIVE,)) if more != (FULL,) or cell not in SPLIT],
    ids=str,
)
def test_the_curve_is_that_of_the_uncompiled_run(task, tmp_path, strategy, ranks, more):
    arguments = [*task("llama"), "train.micro_batch=4", *layout(strategy), *more]
    plain = train_curve(arguments, tmp_path / "plain", ranks)
    compiled = train_curve([*arguments, COMPILED], tmp_path / "compiled", ranks, timeout=500)
    assert_same_curve(compiled, plain, loss=1e-5, grad_norm=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "more"), [("bert", ["model.dropout=0.1"]), ("llama", ["precision=bf16"])], ids=str)
def test_a_stopped_run_goes_on_bitwise(task, tmp_path, family, more):
    arguments = [*task(family), *more, COMPILED, "train.micro_batch=8", "strategy=fsdp"]
    whole = train_curve(arguments, tmp_path / "whole", 2, timeout=500)
    train_curve([*arguments, "train.stop_after=7"], tmp_path / "stopped", 2, timeout=500)
    resumed = train_curve(arguments, tmp_path / "stopped", 2, timeout=500)
    assert [(line["loss"].hex(), line["grad_norm"].hex()) for line in resumed] == [
        (line["loss"].hex(), line["grad_norm"].hex()) for line in whole
    ]


def train_traced(arguments):
    """On a rank: a whole run whose blocks are traced and not compiled; the graphs that are left."""
    from torch._dynamo.utils import counters

    compiling.BACKEND = "eager"
    return train_here(arguments), counters["stats"]["unique_graphs"]


def test_a_whole_run_says_how_long_it_compiled_and_writes_its_sample_uncompiled(tiny, tmp_path):
    arguments = last_wins(
        [*tiny, COMPILED, "train.steps=3", "optimizer.warmup_steps=1", "data.validation_fraction=0.1", f"run.dir={tmp_path / 'run'}"]
    )
    ((code, graphs),) = run_ranks(train_traced, 1, arguments)
    assert code == 0
    assert 0 < graphs <= 4, "with and without a mask, in training and evaluation"
    (line,) = [line for line in (tmp_path / "run" / "logs" / "rank-0.log").read_text().splitlines() if "compiled the blocks" in line]
    assert "step 1 compiled the blocks in" in line
    assert json.loads((tmp_path / "run" / "passport.json").read_text())["dtypes"]["compute"] == "fp32"
