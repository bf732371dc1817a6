"""Pipelines where the contract Gradient does not reach: schedules, deeper cuts, what each rank keeps, and what is held more than once."""

import hashlib
import time
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.pipelining import PipelineStage

from tests.contracts.engines import build_engine, build_job, micro_batches, whole
from tests.contracts.test_tensor import DROPS
from trainer.distributed.sharding import local_part
from trainer.errors import Refused
from trainer.parallel.cutting import costs, crossing, pipeline_problems, places
from trainer.parallel.stages import bubble
from trainer.strategy.native import NativeStrategy
from trainer.testing import assert_same_curve, last_wins, read_curve, run_ranks, train_curve, train_here

PIPELINE, FOUR = "strategy=pipeline", "model.num_layers=4"
LOOPED = ("interleaved_1f1b", "interleaved_zero_bubble", "zbv")
CELLS = {
    **{(name, 2, schedule): [f"strategy.schedule={schedule}"] for name in ("t5 spans", "bart spans") for schedule in ("gpipe", LOOPED[0])},
    **{(name, 2, "gpipe"): ["strategy.schedule=gpipe"] for name in ("llama", "gpt2", "bert", "roberta", "bert tags", "gpt2 classes")},
    **{
        (name, 2, schedule): [f"strategy.schedule={schedule}", FOUR]
        for name in ("llama", "gpt2", "bert", "roberta", "roberta number")
        for schedule in LOOPED
    },
    ("llama", 4, "1f1b"): [FOUR],
    ("gpt2", 4, "gpipe"): [FOUR, "strategy.schedule=gpipe"],
    ("bert", 4, "1f1b"): [FOUR],
    ("t5 spans", 4, "one block each"): [],
    ("bart spans", 4, "one block each"): [],
    ("t5", 4, "one block each"): [],
    ("two berts", 4, "one block each"): [],
    ("llama", 2, "by hand"): [FOUR, "strategy.blocks_per_stage=[1,3]"],
    ("t5 spans", 2, "through the decoder"): ["strategy.blocks_per_stage=[3,1]"],
    ("bart spans", 2, "through the encoder"): ["strategy.blocks_per_stage=[1,3]"],
    ("llama", 2, "four stages each"): ["model.num_layers=8", "strategy.schedule=interleaved_1f1b", "strategy.stages_per_rank=4"],
    ("gpt2", 4, "zbv, copies"): [FOUR, "strategy.schedule=zbv", "strategy.pipeline=2"],
    ("llama", 4, "zero bubble, shards"): [
        FOUR,
        "strategy=fsdp",
        "strategy.pipeline=2",
        "strategy.schedule=interleaved_zero_bubble",
    ],
    ("llama", 4, "zbv, copies, bf16"): [FOUR, "precision=bf16", "strategy.schedule=zbv", "strategy.pipeline=2"],
    ("gpt2", 2, "zero bubble, bf16"): [FOUR, "precision=bf16", "strategy.schedule=interleaved_zero_bubble"],
    ("bart spans", 4, "tensors too"): ["strategy=3d", "strategy.schedule=interleaved_1f1b"],
    ("gpt2", 4, "tensors too"): ["strategy=3d", "strategy.schedule=zbv", FOUR],
    ("llama", 2, "zbv, one micro-batch"): [FOUR, "strategy.schedule=zbv", "train.micro_batch=16"],
    ("llama", 8, "2 x 2 x 2"): ["strategy=3d", FOUR],
}
QUICK = [("gpt2", 4, "zbv, copies"), ("llama", 2, "four stages each")]
"""Encoder-decoders are cut in a quick cell of test_gradient.py."""


@pytest.mark.parametrize("cell", [cell if cell in QUICK else pytest.param(cell, marks=pytest.mark.slow) for cell in CELLS], ids=str)
def test_every_schedule_and_cut_has_the_curve_of_one_rank(task, tmp_path, cell):
    family, ranks, _ = cell
    own = [item for item in CELLS[cell] if item.startswith(("strategy", "train."))]
    arguments = [*task(family), *(item for item in CELLS[cell] if item.startswith(("model.", "precision=")))]
    bounds = {"loss": 1e-2, "grad_norm": 5e-2} if "bf16" in cell[2] else {"loss": 1e-5, "grad_norm": 1e-4}
    curve = train_curve([*arguments, PIPELINE, "train.micro_batch=2", *own], tmp_path / "run", ranks, timeout=240)
    assert_same_curve(curve, train_curve(arguments, tmp_path / "one"), **bounds)


def after_steps(arguments):
    """On a rank: what it keeps of each parameter after two steps, hashed; bytes; and how many micro-batches were in flight on each stage."""
    job, engine = build_engine(arguments)
    flights = {}

    def note(stage):
        call = stage.forward

        def forward(*received):
            result = call(*received)
            torchs = next(s for s in kept() if s.stage_index == stage.index)
            flights[stage.index] = max(flights.get(stage.index, 0), len(torchs.fwd_cache) + 1)
            return result

        stage.forward = forward

    def kept():
        schedule = next(iter(engine._loop._kept.values()))
        return schedule._stages if hasattr(schedule, "_stages") else [schedule._stage]

    for stage in engine._parts.pipeline.stages:
        note(stage)
    from trainer.types import StepPlan

    for step in (1, 2):
        batches = micro_batches(job, engine, step)
        counts = {key: torch.tensor(float(sum(batch.counts[key] for batch in batches))) for key in batches[0].counts}
        engine.forward_backward(step, batches, counts)
        engine.optimizer_step(StepPlan(step, 1.0, 1.0))
    hashes = [(name, hashlib.sha256(whole(parameter.detach()).numpy().tobytes()).hexdigest()) for name, parameter in engine._parts.named]
    state = sum(local_part(tensor).nbytes for tensor in engine.state().values())
    return hashes, state, flights


@pytest.mark.parametrize(
    ("family", "ranks", "more"),
    [
        ("gpt2", 2, [FOUR, "strategy.schedule=zbv"]),
        pytest.param("t5", 4, [], marks=pytest.mark.slow),
        pytest.param("gpt2", 4, [FOUR], marks=pytest.mark.slow),
    ],
)
def test_what_several_stages_hold_stays_the_same(task, tmp_path, family, ranks, more):
    arguments = [*task(family), PIPELINE, *more, "train.micro_batch=4", f"run.dir={tmp_path}"]
    seen = [pair for hashes, _, _ in run_ranks(after_steps, ranks, last_wins(arguments)) for pair in hashes]
    names = [name for name, _ in seen]
    shared = {name for name in names if names.count(name) > 1}
    assert "transformer.wte.weight" in shared or {"shared.weight", *(n for n in names if "relative_attention_bias" in n)} <= shared
    assert all(len({digest for name, digest in seen if name == one}) == 1 for one in shared)


@pytest.mark.parametrize("schedule", ["1f1b", pytest.param("gpipe", marks=pytest.mark.slow)])
def test_a_rank_keeps_its_own_stages_only_and_1f1b_few_micro_batches(task, tmp_path, schedule):
    plain = last_wins([*task("llama"), "model.num_layers=6", "train.micro_batch=2", f"run.dir={tmp_path}"])
    found = run_ranks(after_steps, 2, [*plain, PIPELINE, f"strategy.schedule={schedule}"])
    sizes = run_ranks(stage_sizes, 1, plain)[0]
    for (_, state, flights), size, in_flight in zip(found, sizes, ((2, 1) if schedule == "1f1b" else (8, 8)), strict=True):
        assert state == pytest.approx(12 * size, rel=0.05), "masters and two moments, 4 bytes each"
        assert list(flights.values()) == [in_flight]


def stage_sizes(arguments):
    """How many parameters each of two stages has, counted on the model that nobody has cut."""
    model = build_job(arguments).skeleton
    where = places(model.model, model.family)
    stages = NativeStrategy(pipeline=2).plan(model, 2)
    sizes = [0, 0]
    for name, parameter in model.model.named_parameters(remove_duplicate=False):
        sizes[stages.of_block(where.of[name])] += parameter.numel()
    return sizes


@pytest.mark.parametrize("family", ["bert", *(pytest.param(name, marks=pytest.mark.slow) for name in ("t5", "bart", "llama"))])
def test_a_resumed_run_drops_what_an_uninterrupted_one_does(task, tmp_path, family):
    arguments = [*task(family), *DROPS[family], PIPELINE, "train.micro_batch=4", "train.steps=6"]
    uninterrupted = train_curve(arguments, tmp_path / "whole", 2)
    train_curve([*arguments, "train.stop_after=3"], tmp_path / "parts", 2)
    assert_same_curve(train_curve(arguments, tmp_path / "parts", 2), uninterrupted, loss=0, grad_norm=0)


def test_an_embedding_and_a_head_count_where_a_model_is_cut(tiny, tmp_path):
    wide = last_wins([*tiny, FOUR, "data.tokenizer.vocab_size=4096"])
    assert run_ranks(lengths, 1, wide)[0] == [3, 1], "the head of 4,096 words weighs more than a block"


def lengths(arguments):
    skeleton = build_job(arguments).skeleton
    stages = NativeStrategy(pipeline=2).plan(skeleton, 2)
    assert crossing(places(skeleton.model, skeleton.family), 2) == ("input_ids",)
    assert len(costs(skeleton.model, places(skeleton.model, skeleton.family))) == 4
    return [len(stages.blocks(stage)) for stage in (0, 1)]


def train_slowly(arguments):
    """On a rank: a run whose stages sleep much longer than they compute, as long backward as forward."""

    def slow(method):
        def call(*given, **named):
            time.sleep(0.1)
            return method(*given, **named)

        return call

    for name in ("forward_one_chunk", "backward_one_chunk"):
        setattr(PipelineStage, name, slow(getattr(PipelineStage, name)))
    return train_here(arguments)


@pytest.mark.parametrize(("schedule", "micro_batches"), [("1f1b", 3), pytest.param("gpipe", 1, marks=pytest.mark.slow)])
def test_the_bubble_that_a_run_measures_is_the_formulas(tiny, tmp_path, schedule, micro_batches):
    shape = [f"strategy.schedule={schedule}", f"train.micro_batch={-(-16 // micro_batches)}", "train.steps=6", "train.log_every=1"]
    assert run_ranks(train_slowly, 2, last_wins([*tiny, PIPELINE, *shape, f"run.dir={tmp_path}"])) == [0, 0]
    measured = [line["bubble"] for line in read_curve(tmp_path)]
    expected = bubble(schedule, 2, 1, micro_batches)
    assert min(measured) == pytest.approx(expected, abs=0.06), "what disturbs a step, a busy machine or new connections, makes it larger"


def test_lines_of_metrics_have_a_bubble_in_a_pipeline_only(tiny, tmp_path):
    few = ["train.steps=6", "train.log_every=3", "train.micro_batch=4"]
    piped = train_curve([*tiny, PIPELINE, *few], tmp_path / "pipeline", 2)
    first, second = (piped[number]["bubble"] for number in (0, 3))
    assert [line["bubble"] for line in piped] == [first] * 3 + [second] * 3, "the mean of the steps between two logs"
    assert 0 < first < 1 and 0 < second < 1
    assert all(line["bubble"] is None for line in train_curve([*tiny, "strategy=ddp", *few], tmp_path / "ddp", 2))


def test_a_family_without_a_cut_is_refused():
    family = SimpleNamespace(name="Nobody", before=(), blocks=("layers",))
    assert "trainer/model/families.py" in pipeline_problems(SimpleNamespace(family=family), "1f1b")[0]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["strategy.blocks_per_stage=[1,2]"], r"blocks_per_stage=\[1, 2\] must be 2 numbers.*\[1, 1\] would be balanced"),
        (["strategy.schedule=zbv"], "cuts the model into 4, but it has 2 blocks"),
        (["objective=span_corruption", "model=t5_tiny", "strategy.schedule=zbv"], "takes the backward apart"),
    ],
)
def test_what_cannot_be_cut_is_refused_before_ranks_meet(tiny, more, sentence):
    from trainer.assembly import open_job
    from trainer.config import load
    from trainer.distributed.launch import Launch, read_launch

    launch = read_launch(
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    )
    assert isinstance(launch, Launch)
    config = load(last_wins([*tiny, PIPELINE, *more, "train.micro_batch=4", "run.device=cpu"]), 2)
    with pytest.raises(Refused, match=sentence):
        open_job(config, launch)
