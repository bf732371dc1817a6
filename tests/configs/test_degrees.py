"""The product rule, and what strategies refuse."""

from itertools import product
from math import prod

import pytest

from trainer.config import GROUPS, load
from trainer.distributed.degrees import AXES, resolve
from trainer.distributed.launch import Launch, read_launch
from trainer.errors import Refused
from trainer.strategy.native import NativeStrategy
from trainer.strategy.support import BELONGS, SUPPORTED, combination_problem, markdown_matrix


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 8, 12])
def test_degrees_multiply_to_the_world(world_size):
    for degrees in product((None, 1, 2, 3), repeat=len(AXES)):
        asked, known = dict(zip(AXES, degrees, strict=True)), prod(degree or 1 for degree in degrees)
        fits = world_size % known == 0 if None in degrees else world_size == known
        try:
            found = resolve(asked, world_size)
        except Refused as refused:
            assert not fits
            assert all(f"strategy.{axis}={degree}" in str(refused) for axis, degree in asked.items() if degree and degree > 1)
        else:
            assert fits and found.size == world_size and found.pipeline * found.data * found.tensor == world_size
            assert all(degree in (None, size) for degree, size in zip(degrees, found.shape, strict=True))
            taker = 0 if degrees[0] is None else max((place for place, degree in enumerate(degrees) if degree is None), default=None)
            left_open = [size for place, size in enumerate(found.shape) if degrees[place] is None and place != taker]
            assert all(size == 1 for size in left_open), (
                "what is left over goes to the pipeline, or else to the innermost axis that is open"
            )


@pytest.mark.parametrize(
    ("preset", "world_size", "shape"),
    [
        ("single", 1, (1, 1, 1, 1)),
        ("ddp", 1, (1, 1, 1, 1)),
        ("ddp", 3, (1, 3, 1, 1)),
        ("fsdp", 1, (1, 1, 1, 1)),
        ("fsdp", 4, (1, 1, 4, 1)),
        ("hsdp", 4, (1, 2, 2, 1)),
        ("hsdp", 2, (1, 2, 1, 1)),
        ("tensor", 1, (1, 1, 1, 1)),
        ("tensor", 4, (1, 1, 1, 4)),
        ("tensor strategy.tensor=2", 4, (1, 2, 1, 2)),
        ("ddp strategy.tensor=2", 4, (1, 2, 1, 2)),
        ("fsdp strategy.tensor=2", 8, (1, 1, 4, 2)),
        ("hsdp strategy.tensor=2", 8, (1, 2, 2, 2)),
        ("pipeline", 4, (4, 1, 1, 1)),
        ("pipeline strategy.pipeline=2", 6, (2, 3, 1, 1)),
        ("fsdp strategy.pipeline=2", 8, (2, 1, 4, 1)),
        ("3d", 8, (2, 1, 2, 2)),
        ("3d strategy.pipeline=4", 8, (4, 1, 1, 2)),
    ],
)
def test_presets(preset, world_size, shape):
    strategy = load([*f"strategy={preset}".split(), "train.micro_batch=1"], world_size).strategy
    assert strategy.degrees(world_size).shape == shape
    kinds = [kind for kind in ("3d", "pipeline", "tensor") if kind in preset]
    assert strategy.kind == kinds[0] if kinds else strategy.kind not in ("3d", "pipeline", "tensor")


def test_every_combination_of_the_table_loads_and_a_foreign_one_is_named():
    for row in SUPPORTED:
        for strategy in row.strategy:
            assert combination_problem(strategy, row.precision[0], row.objective[0], row.family[0]) is None
    problem = combination_problem("fsdp", "bf16", "causal_lm", "mamba")
    assert problem is not None
    assert "model family can be llama, gpt2" in problem
    assert {name for row in SUPPORTED for name in row.objective} == set(GROUPS["objective"])


@pytest.mark.parametrize("row", BELONGS, ids=lambda row: row.setting)
def test_a_setting_without_effect_is_refused(row):
    default = getattr(NativeStrategy(), row.setting)
    changed = (not default) if isinstance(default, bool) else default + 1
    wrong = NativeStrategy(fully_shard=not row.fully_shard, **{row.setting: changed})
    right = NativeStrategy(fully_shard=row.fully_shard, **{row.setting: changed})
    assert f"strategy.{row.setting}=" in wrong.check(None, "bf16", "causal_lm", "llama")[0]
    assert right.check(None, "bf16", "causal_lm", "llama") == []


def test_buckets_belong_to_ddp_alone():
    assert NativeStrategy(replicate=None, bucket_mb=50).check(4, "bf16", "causal_lm", "llama") == []
    (problem,) = NativeStrategy(replicate=None, tensor=2, bucket_mb=50).check(4, "bf16", "causal_lm", "llama")
    assert problem.startswith("strategy.bucket_mb=50 has no effect here")


def test_matrix_has_a_row_per_objective_and_puts_strategies_together_that_are_alike(monkeypatch):
    lines = markdown_matrix().splitlines()
    assert lines[0] == "| objective | strategy | llama | gpt2 | bert | roberta | t5 | bart | encoder_decoder |"
    names = "`single`, `ddp`, `fsdp`, `hsdp`, `pipeline`, `zero1`, `zero2`, `zero3`"
    assert lines[2] == f"| `causal_lm` | {names}, `tensor`, `3d` | fp32, bf16 | fp32, bf16 | - | - | - | - | - |"
    assert len(lines) == 2 + 5
    monkeypatch.setattr("trainer.strategy.support.SUPPORTED", SUPPORTED[:-1])
    fewer = markdown_matrix().splitlines()
    assert len(fewer) == len(lines) + 1 and "| `classification` | `tensor`, `3d` | - | - | - | - | - | - | - |" in fewer


def test_launch():
    full = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert read_launch(full) == Launch(3, 4, 1, 2, launched=True)
    assert read_launch({}) == read_launch({"MASTER_ADDR": "a", "MASTER_PORT": "1"}) == Launch()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        with pytest.raises(Refused, match=f"{name} is not"):
            read_launch({key: value for key, value in full.items() if key != name})
