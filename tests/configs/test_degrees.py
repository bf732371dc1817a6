"""The product rule, and what strategies refuse."""

import pytest

from trainer.config import GROUPS, load
from trainer.distributed.degrees import resolve
from trainer.distributed.launch import Launch, read_launch
from trainer.errors import Refused
from trainer.strategy.native import NativeStrategy
from trainer.strategy.support import BELONGS, SUPPORTED, combination_problem, markdown_matrix


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 8])
def test_degrees_multiply_to_the_world(world_size):
    for asked in (None, 1, 2, 3):
        for other in (None, 1, 2, 3):
            try:
                degrees = resolve(asked, other, world_size)
            except Refused as refused:
                assert "strategy." in str(refused)
                fits = (asked or 1) * (other or 1)
                assert asked is other is None or (world_size % fits if None in (asked, other) else world_size != fits)
            else:
                assert degrees.size == world_size
                assert asked in (None, degrees.replicate)
                assert other in (None, degrees.shard)


@pytest.mark.parametrize(
    ("preset", "world_size", "shape"),
    [
        ("single", 1, (1, 1)),
        ("ddp", 1, (1, 1)),
        ("ddp", 3, (3, 1)),
        ("fsdp", 1, (1, 1)),
        ("fsdp", 4, (1, 4)),
        ("hsdp", 4, (2, 2)),
        ("hsdp", 2, (2, 1)),
    ],
)
def test_presets(preset, world_size, shape):
    assert load([f"strategy={preset}"], world_size).strategy.degrees(world_size).shape == shape


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


def test_matrix_has_a_row_per_objective_and_puts_strategies_together_that_are_alike():
    lines = markdown_matrix().splitlines()
    assert lines[0] == "| objective | strategy | llama | gpt2 | bert | roberta | t5 | bart | encoder_decoder |"
    assert (
        lines[2]
        == "| `causal_lm` | `single`, `ddp`, `fsdp`, `hsdp`, `zero1`, `zero2`, `zero3` | fp32, bf16 | fp32, bf16 | - | - | - | - | - |"
    )
    assert len(lines) == 2 + 5


def test_launch():
    full = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert read_launch(full) == Launch(3, 4, 1, 2, launched=True)
    assert read_launch({}) == read_launch({"MASTER_ADDR": "a", "MASTER_PORT": "1"}) == Launch()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        with pytest.raises(Refused, match=f"{name} is not"):
            read_launch({key: value for key, value in full.items() if key != name})
