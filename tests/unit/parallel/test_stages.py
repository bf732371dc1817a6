"""Where a pipeline is cut, on which rank a stage is, and which schedules go: against brute force, and against torch's own schedules."""

from itertools import combinations, pairwise
from types import SimpleNamespace

import pytest

from trainer.engine.schedule import SCHEDULES
from trainer.errors import Refused
from trainer.parallel.stages import LOOPED, Stages, balanced, bubble, plan_stages, problems_of_schedule

COSTS = [5.0, 1.0, 2.0, 1.0, 1.0, 1.0, 4.0]


@pytest.mark.parametrize("parts", range(1, 8))
def test_the_dearest_stage_is_as_cheap_as_can_be(parts):
    ways = [(0, *cuts, len(COSTS)) for cuts in combinations(range(1, len(COSTS)), parts - 1)]
    least = min(max(sum(COSTS[a:b]) for a, b in pairwise(way)) for way in ways)
    lengths = balanced(COSTS, parts)
    starts = [sum(lengths[:number]) for number in range(parts)]
    assert sum(lengths) == len(COSTS) and min(lengths) >= 1
    assert max(sum(COSTS[start : start + length]) for start, length in zip(starts, lengths, strict=True)) == least


def test_of_equally_good_cuts_the_most_even_is_taken():
    assert balanced([4.0, 1.0, 1.0, 1.0, 1.0], 3) == [1, 2, 2]


@pytest.mark.parametrize(
    ("schedule", "on_ranks"), [("1f1b", [[0], [1]]), ("interleaved_1f1b", [[0, 2], [1, 3]]), ("zbv", [[0, 3], [1, 2]])]
)
def test_which_rank_has_which_stages(schedule, on_ranks):
    stages = plan_stages([1.0] * 4, 2, schedule, None, None)
    assert [stages.of_rank(rank) for rank in (0, 1)] == on_ranks
    blocks = [block for stage in range(stages.count) for block in stages.blocks(stage)]
    assert blocks == [0, 1, 2, 3]
    assert all(block in stages.blocks(stages.of_block(block)) for block in blocks)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([1.0], 2, "gpipe", None, None), "cuts the model into 2, but it has 1 block"),
        (([1.0] * 4, 2, "zbv", None, [1, 3]), "must be 4 numbers"),
        (([1.0] * 4, 2, "gpipe", None, [0, 4]), r"\[2, 2\] would be balanced"),
    ],
)
def test_what_cannot_be_cut_is_refused(arguments, sentence):
    with pytest.raises(Refused, match=sentence):
        plan_stages(*arguments)


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_torch_takes_what_is_not_refused_and_refuses_what_is(schedule, ranks):
    count = LOOPED.get(schedule, 1)
    for micro_batches in range(1, 14):
        stages = [
            SimpleNamespace(
                group_size=ranks, group_rank=0, num_stages=count * ranks, stage_index=ranks * n, is_first=n == 0, is_last=False, submod=None
            )
            for n in range(count)
        ]
        try:
            made = SCHEDULES[schedule](stages if schedule in LOOPED else stages[0], micro_batches, scale_grads=False)
        except (ValueError, AssertionError, KeyError):
            made = None
        assert bool(problems_of_schedule(schedule, ranks, None, micro_batches)) == (made is None), micro_batches


def test_stages_and_schedules_must_go_together():
    assert "needs two or more" in problems_of_schedule("interleaved_1f1b", 2, 1, 8)[0]
    assert "needs a looped schedule" in problems_of_schedule("gpipe", 2, 2, 8)[0]
    assert "not 3" in problems_of_schedule("zbv", 2, 3, 8)[0]


def test_bubbles_are_those_of_the_papers():
    assert bubble("gpipe", 4, 1, 8) == bubble("1f1b", 4, 1, 8) == 3 / 11
    assert bubble("interleaved_1f1b", 4, 2, 8) == 3 / 19
    assert bubble("interleaved_zero_bubble", 4, 2, 8) == 1 / 17
    assert bubble("zbv", 4, 2, 8) == 0


def test_one_block_more_or_less():
    assert Stages((0, 2), 4, 2, "gpipe").blocks(1) == range(2, 4)
