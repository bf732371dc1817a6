"""The clock by which a pipeline's bubble is measured, on a CPU; tests/gpu has it on CUDA."""

from itertools import count

import pytest
import torch

from trainer.engine import clock


@pytest.fixture
def ticking(monkeypatch):
    """One second later at each look."""
    ticks = count(0.0)
    monkeypatch.setattr(clock.time, "perf_counter", lambda: next(ticks))
    return clock.Clock(torch.device("cpu"))


def a_step(ticking, stretches):
    with ticking.step():
        for _ in range(stretches):
            with ticking.span("work"):
                pass


def test_work_and_all_of_the_steps_since_the_last_look(ticking):
    a_step(ticking, 2)
    a_step(ticking, 1)
    assert ticking.read() == (2, {"work": 3, "step": 5 + 3})
    assert ticking.read() == (0, {})


def test_a_step_that_failed_is_not_counted(ticking):
    with pytest.raises(RuntimeError), ticking.step(), ticking.span("work"):
        raise RuntimeError
    a_step(ticking, 1)
    assert ticking.read() == (1, {"work": 1, "step": 3})


def test_no_more_than_the_last_steps_are_kept(ticking):
    a_step(ticking, 7)
    for _ in range(clock.STEPS):
        a_step(ticking, 1)
    assert ticking.read() == (clock.STEPS, {"work": clock.STEPS, "step": 3 * clock.STEPS})
