"""When the training loop does what."""

from itertools import product

from trainer.trainer import Plan


def test_the_checkpoints_to_come_are_those_that_will_be_saved():
    for every, stop in product((1, 3, 10, None), (1, 9, 10, 30)):
        plan = Plan(30, stop, 10, every, None, "stop", 1.0, float, None)
        for done in range(stop):
            assert plan.saves_after(done) == sum(plan.saves(step) for step in range(done + 1, stop + 1)), (every, stop, done)
