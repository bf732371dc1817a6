"""Contract Gradient: one loss curve, whatever the strategy, the number of ranks, the micro-batch and the family."""

import math

import pytest

from tests.contracts.tasks import NAMES, SMOOTH, SPREAD, TEXT, data_ranks, layout
from trainer.testing import assert_same_curve, train_curve

LAYOUTS = [("single", 1), *(("ddp", n) for n in (1, 2, 3, 4)), *(("fsdp", n) for n in (1, 2, 3, 4)), ("hsdp", 4)]
ZERO = [(f"zero{stage}", ranks) for stage in (1, 2, 3) for ranks in (1, 2, 4)]
TENSOR = [("tensor", 2), ("tensor", 4), ("tensor x fsdp", 4), ("tensor x ddp", 4), ("tensor x fsdp", 2)]
PIPELINE = [("pipeline", 2), ("pipeline x fsdp", 4), ("pipeline x ddp", 4), ("3d", 4)]
"""Of two stages, so that every family's two blocks are cut; deeper ones and other schedules are in test_pipeline.py."""
KINKED = [("ddp", 3), ("fsdp", 2), ("hsdp", 4), ("zero2", 2), ("zero3", 2), ("tensor", 2), ("tensor x fsdp", 4), ("pipeline", 2), ("3d", 4)]
KINDS = ("llama", "bert", "t5")
"""A decoder, an encoder and a seq2seq model; the others are under ZeRO once."""
REPRESENTATIVES = {
    ("llama", "single", 1, 4),
    ("llama", "fsdp", 2, 4),
    ("llama", "hsdp", 4, 1),
    ("t5 spans", "fsdp", 2, 2),
    ("llama", "ddp", 3, 2),
    ("roberta number", "fsdp", 2, 1),
    ("llama", "zero1", 2, 2),
    ("bert", "zero2", 2, 2),
    ("bert", "zero3", 2, 2),
    ("bert", "tensor x fsdp", 4, 2),
    ("t5", "pipeline", 2, 2),
    ("gpt2 classes", "pipeline x ddp", 4, 2),
}


EVEN = ("t5 spans", "bart spans", "bert classes", "roberta classes", "llama classes", "gpt2 classes", "bert tags", "roberta number")
"""Of whose samples each has as many targets as the next."""


def micro_batch(ranks: int, accumulation: int, global_batch: int = 16) -> int:
    """The micro-batch at which a rank of ``ranks`` takes ``accumulation`` of them (or the nearest number) a step."""
    return math.ceil(math.ceil(global_batch / ranks) / accumulation)


def matrix():
    for family in NAMES:
        layouts = [*LAYOUTS, *(ZERO if family in KINDS else []), *TENSOR, *PIPELINE]
        cells = [
            (family, *place, accumulation)
            for place in layouts
            for accumulation in (1, 2, 4)
            if place not in PIPELINE or accumulation > 1  # 1F1B wants as many micro-batches as stages
        ]
        for cell in cells if family in KINDS else [*cells, (family, "zero3", 2, 2)]:
            yield pytest.param(*cell, marks=() if cell in REPRESENTATIVES else pytest.mark.slow)


@pytest.fixture(scope="session")
def one_rank(task, tmp_path_factory):
    """The reference curve of a family and precision: one rank, one micro-batch."""
    curves = {}

    def curve(family, *more):
        if (family, more) not in curves:
            curves[family, more] = train_curve([*task(family), *more], tmp_path_factory.mktemp("reference"))
        return curves[family, more]

    return curve


@pytest.mark.parametrize(("family", "strategy", "ranks", "accumulation"), list(matrix()))
def test_every_layout_has_the_curve_of_one_rank(task, tmp_path, one_rank, family, strategy, ranks, accumulation):
    arguments = [*task(family), *layout(strategy), f"train.micro_batch={micro_batch(data_ranks(strategy, ranks), accumulation)}"]
    arguments += [SPREAD] if strategy == "zero3" else []
    curve = train_curve(arguments, tmp_path / "run", ranks)
    reference = one_rank(family)
    if family not in EVEN:
        assert len({line["num_targets"] for line in reference}) > 1, "the corpus must have uneven counts for this to mean anything"
    assert any(line["grad_norm"] > (0.5 if family in TEXT else 0.2) for line in reference), "clipping must have something to clip"
    assert_same_curve(curve, reference, loss=1e-5, grad_norm=1e-4)


@pytest.mark.parametrize(
    ("strategy", "ranks"), [pytest.param(*place, marks=() if place == ("ddp", 3) else pytest.mark.slow) for place in KINKED]
)
def test_the_first_gradient_of_a_relu_is_that_of_one_rank(task, tmp_path, strategy, ranks):
    """No later one: a single unit on whose sign two layouts do not agree parts their curves (decision 0010)."""
    arguments = [*(item for item in task("t5") if item != SMOOTH), "model.feed_forward=relu", "train.steps=1", "optimizer.warmup_steps=0"]
    curve = train_curve([*arguments, *layout(strategy), "train.micro_batch=4"], tmp_path / "run", ranks)
    assert_same_curve(curve, train_curve(arguments, tmp_path / "one"), loss=1e-5, grad_norm=1e-4)


@pytest.mark.parametrize("strategy", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("zero1", "zero2")), "zero3"])
@pytest.mark.parametrize("family", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in KINDS[1:])])
def test_zero_does_not_clip_by_itself(task, tmp_path, family, strategy):
    more = ["model.initializer_range=0.2"] if family == "llama" else []  # so that there is something that DeepSpeed would clip
    arguments = [*(item for item in task(family) if "max_grad_norm" not in item), "optimizer.max_grad_norm=null", *more]
    curve = train_curve([*arguments, f"strategy={strategy}", "train.micro_batch=4"], tmp_path / "run", 2)
    reference = train_curve(arguments, tmp_path / "one")
    assert family != "llama" or max(line["grad_norm"] for line in reference) > 1.0
    assert_same_curve(curve, reference, loss=1e-5, grad_norm=1e-4)


@pytest.mark.parametrize("accumulation", [2, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 4))])
def test_ddp_and_fsdp_are_bitwise_equal_on_two_ranks(tiny, tmp_path, accumulation):
    shape = [*tiny, f"train.micro_batch={micro_batch(2, accumulation)}", "optimizer.max_grad_norm=null"]
    ddp = train_curve([*shape, "+strategy=ddp"], tmp_path / "ddp", 2)
    fsdp = train_curve([*shape, "+strategy=fsdp", "strategy.reduce_every_micro_batch=false"], tmp_path / "fsdp", 2)
    assert [line["loss"].hex() for line in ddp] == [line["loss"].hex() for line in fsdp]


QUICK_BF16 = [("llama", "ddp", 2)]
"""Other strategies compute in bf16 in the quick cells of test_support.py."""
IN_BF16 = [
    ("ddp", 2),
    ("fsdp", 4),
    ("zero3", 2),
    ("hsdp", 4),
    ("fsdp", 3),
    ("zero1", 2),
    ("zero2", 2),
    ("zero3", 4),
    *TENSOR[:3],
    *PIPELINE,
]


@pytest.mark.parametrize(
    ("family", "strategy", "ranks"),
    [pytest.param(family, *cell, marks=() if (family, *cell) in QUICK_BF16 else pytest.mark.slow) for family in NAMES for cell in IN_BF16],
)
def test_bf16_stays_near_one_rank(task, tmp_path, one_rank, family, strategy, ranks):
    arguments = [*task(family), "precision=bf16", *layout(strategy), "train.micro_batch=2"]
    assert_same_curve(train_curve(arguments, tmp_path / "run", ranks), one_rank(family, "precision=bf16"), loss=1e-2, grad_norm=5e-2)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["single", "fsdp"])
@pytest.mark.parametrize("family", ["roberta", "t5", "bart spans"])
def test_eager_attention_has_the_curve_of_sdpa_in_bf16(task, tmp_path, one_rank, family, strategy):
    more = ["precision=bf16", "model.attention=eager", f"strategy={strategy}"]
    curve = train_curve([*task(family), *more], tmp_path / "run", 1)
    assert_same_curve(curve, one_rank(family, "precision=bf16"), loss=1e-2, grad_norm=5e-2)


@pytest.mark.parametrize(
    "more",
    [
        ["strategy.reshard_after_forward=false"],
        ["strategy.cpu_offload=true"],
        ["strategy.reduce_every_micro_batch=false", "train.micro_batch=4"],
    ],
)
def test_fsdp_options_change_no_loss(tiny, tmp_path, one_rank, more):
    assert_same_curve(train_curve([*tiny, "+strategy=fsdp", *more], tmp_path / "run", 2), one_rank("llama"))


def test_workers_change_nothing(tiny, tmp_path, one_rank):
    curve = train_curve([*tiny, "data.workers=2"], tmp_path / "run", 1)
    assert_same_curve(curve, one_rank("llama"), loss=0, grad_norm=0)
