"""Contract Refusal, combinations: what support.py allows trains, and what it does not is refused with a way out. All of it comes from the table."""

import math
import re
from dataclasses import replace
from itertools import product

import pytest

from tests.contracts.tasks import RECORDS, SPREAD, TEXT
from trainer.config import GROUPS, contradictions, load
from trainer.errors import Refused
from trainer.strategy.support import AXES, SUPPORTED, combination_problem
from trainer.testing import assert_same_curve, train_curve

ALLOWED = list(dict.fromkeys(cell for row in SUPPORTED for cell in product(*(getattr(row, axis) for axis in AXES))))
CHOICES = {axis: list(dict.fromkeys(cell[place] for cell in ALLOWED)) for place, axis in enumerate(AXES)}
RANKS = {"single": 1, "hsdp": 4, "3d": 4}
"""The fewest with which a strategy does what it is for, where that is not 2."""
QUICK = {
    (strategy, precision, *ALLOWED[0][2:])
    for strategy, precision in (("fsdp", "bf16"), ("zero2", "bf16"), ("zero3", "bf16"), ("tensor", "bf16"), ("3d", "fp32"))
}
"""A cell of each engine and axis, all of one objective and family, so that one reference does."""
BOUNDS = {"fp32": {"loss": 1e-5, "grad_norm": 1e-4}, "bf16": {"loss": 1e-2, "grad_norm": 5e-2}}


def tasks():
    """The first name in tests.contracts.tasks of each objective and family."""
    named = {}
    for name, arguments in (TEXT | RECORDS).items():
        chosen = dict(argument.split("=", 1) for argument in arguments)
        named.setdefault((chosen.get("objective", "causal_lm"), chosen["model"].removesuffix("_tiny")), name)
    return named


@pytest.fixture(scope="module")
def train(task, tmp_path_factory):
    """The curve of a cell over three steps."""

    def curve(strategy, precision, objective, family):
        short = ["train.steps=3", "optimizer.warmup_steps=1", "train.micro_batch=4", *([SPREAD] if strategy == "zero3" else [])]
        arguments = [*task(tasks()[objective, family]), f"strategy={strategy}", f"precision={precision}", *short]
        return train_curve(arguments, tmp_path_factory.mktemp("cell") / "run", RANKS.get(strategy, 2))

    return curve


@pytest.fixture(scope="module")
def reference(train):
    """The curve of an objective and family on one rank in fp32."""
    curves = {}

    def curve(objective, family):
        if (objective, family) not in curves:
            curves[objective, family] = train("single", "fp32", objective, family)
        return curves[objective, family]

    return curve


@pytest.mark.parametrize("cell", [cell if cell in QUICK else pytest.param(cell, marks=pytest.mark.slow) for cell in ALLOWED], ids="-".join)
def test_what_is_allowed_trains_like_one_rank_in_fp32(train, reference, cell):
    curve = train(*cell)
    assert len(curve) == 3 and all(math.isfinite(line["loss"]) and line["applied"] for line in curve)
    assert_same_curve(curve, reference(*cell[2:]), **BOUNDS[cell[1]])


@pytest.fixture(scope="module")
def configs():
    """A config for every cell of the table, as the static gate is given it."""
    chosen = {strategy: load([f"strategy={strategy}", "train.micro_batch=1"], None) for strategy in CHOICES["strategy"]}
    precisions = {precision: load([f"precision={precision}"], None).precision for precision in CHOICES["precision"]}

    def config(strategy, precision, objective, family):
        parts = {"objective": GROUPS["objective"][objective](), "model": GROUPS["model"][family]()}
        return replace(chosen[strategy], precision=precisions[precision], **parts)

    return config


def test_what_is_not_allowed_is_refused_with_a_way_out(configs):
    assert set(ALLOWED) >= QUICK
    refused = 0
    for cell in product(*CHOICES.values()):
        found = [sentence for sentence in contradictions(configs(*cell), None) if "do not combine" in sentence]
        refused += len(found)
        assert len(found) == (cell not in ALLOWED), cell
        for sentence in found:
            typed, fixes = re.fullmatch(r"(.*) do not combine: (.*)\.", sentence).groups()
            assert dict(part.split("=") for part in typed.split(", ")) == dict(zip(KEYS, cell, strict=True))
            for way in fixes.split("; or "):
                allowed = [other in ALLOWED for other in others(cell, way)]
                assert any(allowed) if way.count(" can be ") > 1 else all(allowed), sentence
    assert refused == math.prod(map(len, CHOICES.values())) - len(ALLOWED) > 0


KEYS = ("strategy", "precision.compute", "objective", "model family")


def others(cell, way):
    """The cells that a sentence proposes: ``KEY can be A, B and KEY can be C``."""
    proposed = dict(part.split(" can be ") for part in re.split(r" and (?=[a-z. ]+ can be )", way))
    assert set(proposed) <= set(KEYS)
    return product(*(proposed[key].split(", ") if key in proposed else [name] for key, name in zip(KEYS, cell, strict=True)))


def test_the_gate_says_it_of_a_command_line():
    cell = next(cell for cell in product(*CHOICES.values()) if cell not in ALLOWED and (*cell[:2], "causal_lm", cell[3]) == cell)
    strategy, precision, objective, family = cell
    with pytest.raises(Refused, match=re.escape(combination_problem(*cell))):
        load([f"strategy={strategy}", f"precision={precision}", f"objective={objective}", f"model={family}_tiny"], None)
