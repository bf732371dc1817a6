"""Trackers run beside training: slow or broken, they cost a sentence and nothing else."""

import threading
import time

import pytest

from trainer.callbacks import background
from trainer.callbacks.background import Background
from trainer.types import Evaluation, StepRecord


def record(step):
    return StepRecord(step, 1.0, 1.0, 1e-3, 8, "0" * 16, 100.0, 120.0, None, None, 1, True, {})


class Notes:
    """A tracker that keeps what it is sent; ``breaks`` names the method that fails, ``holds`` keeps ``open`` waiting."""

    name = "Notes"

    def __init__(self, breaks="", holds=None):
        self.sent, self._breaks, self._holds = [], breaks, holds

    def open(self):
        if self._holds:
            self._holds.wait()
        self._note("open")

    def step(self, record):
        self._note("step", record.step)

    def evaluation(self, evaluation):
        self._note("evaluation", evaluation.step)

    def close(self):
        self._note("close")

    def _note(self, *what):
        if what[0] == self._breaks:
            raise OSError("no space")
        self.sent.append(what)


def test_it_is_sent_the_last_step_of_each_interval_in_order():
    notes, said = Notes(), []
    callback = Background(notes, said.append)
    callback.on_log([record(1), record(2)])
    callback.on_evaluate(Evaluation(2, {"loss": 1.0}, 8))
    callback.on_log([record(3)])
    callback.on_end()
    assert notes.sent == [("open",), ("step", 2), ("evaluation", 2), ("step", 3), ("close",)] and said == []


@pytest.mark.parametrize("breaks", ["open", "step", "evaluation", "close"])
def test_what_fails_is_said_once(breaks):
    notes, said = Notes(breaks), []
    callback = Background(notes, said.append)
    for step in range(1, 50):
        callback.on_log([record(step)])
        callback.on_evaluate(Evaluation(step, {}, 8))
    callback.on_end()
    assert said == ["Notes is left out from now on; training goes on, and metrics.jsonl has everything (OSError: no space)"]


def test_nobody_waits_for_a_tracker_that_hangs(monkeypatch):
    monkeypatch.setattr(background, "LAST_WORDS_SECONDS", 0.2)
    monkeypatch.setattr(background, "_WAITING", 10)
    held, said = threading.Event(), []
    notes = Notes(holds=held)
    callback = Background(notes, said.append)
    began = time.thread_time()
    for step in range(1000):
        callback.on_log([record(step)])
    assert time.thread_time() - began < 1 and said == [
        "Notes is left out from now on; training goes on, and metrics.jsonl has everything (it has fallen 10 steps behind)"
    ]
    callback.on_end()
    assert len(said) == 1
    held.set()


def test_the_end_waits_for_what_is_left_but_not_for_ever(monkeypatch):
    monkeypatch.setattr(background, "LAST_WORDS_SECONDS", 0.2)
    held, said = threading.Event(), []
    callback = Background(Notes(holds=held), said.append)
    callback.on_log([record(1)])
    callback.on_end()
    assert len(said) == 1 and "what it still had is left out" in said[0]
    held.set()
