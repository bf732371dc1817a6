"""Ranks side by side: who holds the most, and for whom the others wait."""

import json

import pytest
import torch

from trainer.callbacks.ranks import RankFigures, Ranks, peak_memory
from trainer.testing import last_wins, run_ranks, train_here

FIGURES = [RankFigures(3 << 20, 4.0, 10.0), RankFigures(5 << 20, 1.0, 10.0), RankFigures(2 << 20, 3.0, 10.0)]


def gathered(figures):
    return Ranks.gathered(figures[0], lambda own: [vars(figure) for figure in figures])


def test_the_rank_that_waits_least_is_the_one_that_the_others_wait_for():
    ranks = gathered(FIGURES)
    assert ranks == Ranks([3 << 20, 5 << 20, 2 << 20], [4.0, 1.0, 3.0], slowest_rank=1, kept_waiting=pytest.approx(0.25))
    assert ranks.facts() == {
        "memory": "5 MiB at most (rank 1), 2 at least (rank 2)",
        "slowest": "rank 1: the others waited for it during 25% of the time",
    }


def test_ranks_that_keep_pace_are_not_blamed():
    assert "slowest" not in gathered([RankFigures(1, 1.1, 10.0), RankFigures(1, 1.0, 10.0)]).facts()


def test_one_rank_waits_for_nobody():
    assert gathered(FIGURES[:1]) == Ranks([3 << 20], [4.0], None, 0.0)
    assert gathered(FIGURES[:1]).facts() == {"memory": "3 MiB at most"}


def test_peak_memory_is_in_bytes():
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(64 << 20, dtype=torch.uint8)
    assert 0 <= peak_memory(torch.device("cpu")) - before <= 80 << 20 and len(held)
    assert before > 50 << 20, "torch alone needs more"


def _late(arguments, late_rank):
    """Trains where one rank's data comes late to every step."""
    import os
    import time
    from unittest.mock import patch

    from trainer.data.loader import StepLoader

    steps = StepLoader.steps

    def slowly(self, first, last):
        for step in steps(self, first, last):
            if int(os.environ["RANK"]) == late_rank:
                time.sleep(0.3)
            yield step

    with patch.object(StepLoader, "steps", slowly):
        return train_here(arguments)


@pytest.mark.slow
def test_a_rank_that_comes_late_is_found(tiny, tmp_path):
    arguments = last_wins([*tiny, "strategy=ddp", "train.steps=10", "checkpoint.every=5", f"run.dir={tmp_path}"])
    assert run_ranks(_late, 2, arguments, 1) == [0, 0]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = [line for line in lines if line["kind"] == "ranks"]
    assert [line["step"] for line in told] == [5, 10]
    last = told[-1]
    assert last["slowest_rank"] == 1 and len(last["peak_memory_bytes"]) == 2
    assert last["waited_seconds"][0] - last["waited_seconds"][1] > 2.0, "ten times 0.3 s, but for what the other rank waited for itself"
