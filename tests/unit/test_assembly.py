"""What is asked of a strategy beside what it must have: of any strategy, ours or a plugin's."""

import pytest

from trainer.assembly import open_job, require_schedule
from trainer.config import load
from trainer.distributed.launch import Launch
from trainer.errors import Refused
from trainer.strategy.native import NativeStrategy
from trainer.testing import last_wins


class Plain:
    """Has only what a strategy must have."""

    name = "plain"
    degrees, check, build = NativeStrategy.degrees, NativeStrategy.check, NativeStrategy.build


class Wary(Plain):
    """Has all that it may have."""

    def problems(self, skeleton, precision, launch, device):
        return [f"{skeleton.family.name} in {precision.compute} on {device}"] if precision.compute == "bf16" else []

    def batch_problems(self, world_size, global_batch, micro_batch):
        return [f"{world_size} ranks, {global_batch} by {micro_batch}"]

    def whole_model_problem(self, skeleton, world_size):
        return f"{world_size} ranks are no place"


def configured(strategy, arguments):
    config = load(last_wins(arguments), 1)
    config.strategy = strategy
    return config


def test_one_that_only_has_what_it_must_is_asked_for_no_more(task):
    config = configured(Plain(), task("t5"))
    require_schedule(config, 1)
    assert open_job(config, Launch()).config is config


def test_all_that_one_may_have_is_asked(task):
    with pytest.raises(Refused, match=r"^2 ranks, 16 by 16$"):
        require_schedule(configured(Wary(), task("t5")), 2)
    with pytest.raises(Refused, match=r"^train\.evaluate_generate=2: 1 ranks are no place, or set it to 0\.$"):
        open_job(configured(Wary(), task("t5")), Launch())
    with pytest.raises(Refused, match=r"^T5 in bf16 on cpu$"):
        open_job(configured(Wary(), [*task("t5"), "precision=bf16"]), Launch())
    assert open_job(configured(Wary(), [*task("t5"), "train.evaluate_generate=0"]), Launch())
