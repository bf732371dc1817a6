"""Where a pipeline is cut: which blocks each stage has, and on which rank it is. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from trainer.errors import Refused

LOOPED = {"interleaved_1f1b": 2, "interleaved_zero_bubble": 2, "zbv": 2}
"""Schedules under which a rank has several stages, and how many unless it is said."""


SPLIT = ("interleaved_zero_bubble", "zbv")
"""Schedules under which the gradients of weights come later than those of hidden states."""


@dataclass(frozen=True)
class Stages:
    """The stages of a pipeline, in the order in which a sample runs through them.

    Attributes:
        first: number of each stage's first block; blocks are counted through all stacks.
        end: number of blocks in all.
        ranks: places along the pipeline axis.
        schedule: which of them has which stage: V-shaped under ``zbv``, else round and round.
    """

    first: tuple[int, ...]
    end: int
    ranks: int
    schedule: str

    @property
    def count(self) -> int:
        """Number of stages."""
        return len(self.first)

    def blocks(self, stage: int) -> range:
        """The blocks of a stage."""
        return range(self.first[stage], self.first[stage + 1] if stage + 1 < self.count else self.end)

    def of_block(self, block: int) -> int:
        """The stage that has a block."""
        return max(stage for stage in range(self.count) if self.first[stage] <= block)

    def rank(self, stage: int) -> int:
        """The place along the pipeline axis at which a stage is."""
        turn, place = divmod(stage, self.ranks)
        return self.ranks - 1 - place if self.schedule == "zbv" and turn % 2 else place

    def of_rank(self, rank: int) -> list[int]:
        """The stages of a place along the pipeline axis, ascending."""
        return [stage for stage in range(self.count) if self.rank(stage) == rank]


def plan_stages(costs: Sequence[float], ranks: int, schedule: str, stages_per_rank: int | None, blocks: Sequence[int] | None) -> Stages:
    """Cuts a model into stages.

    Args:
        costs: of each block, with what comes before the first and after the last counted in.
        ranks: places along the pipeline axis.
        schedule: name of the schedule.
        stages_per_rank: None: as many as the schedule needs.
        blocks: how many blocks each stage shall have; None: so that the dearest stage is as cheap as can be.

    Raises:
        Refused: there are fewer blocks than stages, or ``blocks`` do not add up.
    """
    per_rank = stages_per_rank or LOOPED.get(schedule, 1)
    count = ranks * per_rank
    if count > len(costs):
        raise Refused(
            f"strategy.pipeline={ranks} with {per_rank} stages on each rank cuts the model into {count}, but it has {len(costs)} blocks: "
            "use fewer ranks or stages, or a deeper model."
        )
    if blocks is not None and (len(blocks) != count or sum(blocks) != len(costs) or min(blocks) < 1):
        raise Refused(
            f"strategy.blocks_per_stage={list(blocks)} must be {count} numbers, one or more each, that add up to the model's {len(costs)} "
            f"blocks; {balanced(costs, count)} would be balanced."
        )
    lengths = list(blocks) if blocks is not None else balanced(costs, count)
    return Stages((0, *accumulate(lengths[:-1])), len(costs), ranks, schedule)


def balanced(costs: Sequence[float], parts: int) -> list[int]:
    """Lengths of ``parts`` runs of ``costs``, none empty, whose dearest is as cheap as can be; of equally good ones the most even."""
    sums = [0.0, *accumulate(costs)]
    # best[n]: (the dearest run, the sum of squares, the lengths) of the cheapest way to cut the first n.
    best: dict[int, tuple[float, float, list[int]]] = {0: (0.0, 0.0, [])}
    for part in range(1, parts + 1):
        ways: dict[int, tuple[float, float, list[int]]] = {}
        for end in range(part, len(costs) - (parts - part) + 1):
            ways[end] = min(
                (max(dearest, run := sums[end] - sums[start]), squares + run * run, [*lengths, end - start])
                for start, (dearest, squares, lengths) in best.items()
                if start < end
            )
        best = ways
    return best[len(costs)][2]


def problems_of_schedule(schedule: str, ranks: int, stages_per_rank: int | None, micro_batches: int) -> list[str]:
    """What of a schedule cannot work with so many ranks and micro-batches a step, one sentence each."""
    problems = []
    per_rank = stages_per_rank or LOOPED.get(schedule, 1)
    if schedule in LOOPED and per_rank < 2:
        problems.append(f"strategy.schedule={schedule} needs two or more stages on each rank: set strategy.stages_per_rank=2.")
    if schedule not in LOOPED and per_rank > 1:
        problems.append(f"strategy.stages_per_rank={per_rank} needs a looped schedule: use strategy.schedule=interleaved_1f1b.")
    if schedule == "zbv" and per_rank > 2:
        problems.append(f"strategy.schedule=zbv has two stages on each rank, not {per_rank}: leave strategy.stages_per_rank out.")
    least = ranks if schedule == "1f1b" else 1
    rounds = max(1, micro_batches // ranks) if schedule.startswith("interleaved") else 1
    if micro_batches < least:
        problems.append(
            f"strategy.schedule={schedule} over {ranks} ranks needs {least} micro-batches a step or more, but there are {micro_batches}: "
            "lower train.micro_batch, raise train.global_batch, or use strategy.schedule=gpipe."
        )
    elif micro_batches % rounds:
        problems.append(
            f"strategy.schedule={schedule} takes a step's {micro_batches} micro-batches in {rounds} rounds, which does not divide them: "
            f"make them a multiple of {ranks} by train.micro_batch or train.global_batch, or use strategy.schedule=1f1b."
        )
    return problems


def bubble(schedule: str, ranks: int, stages_per_rank: int, micro_batches: int) -> float:
    """The share of a step in which a rank has nothing to do, if all stages take as long and sending takes no time.

    (p - 1) / (v m + p - 1) for p ranks with v stages each and m micro-batches (Narayanan et al., 2021, section 2.2, there as a share of the
    busy time); the zero-bubble schedules fill it with gradients of weights (Qi et al., 2024).
    """
    if schedule == "zbv":
        return 0.0
    idle = (ranks - 1) / 3 if schedule == "interleaved_zero_bubble" else ranks - 1
    return idle / (stages_per_rank * micro_batches + idle)
