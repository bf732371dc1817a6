"""What is made ahead comes in order, one step early, in another thread, and fails where it would have come."""

import threading

import pytest

from trainer.data.ahead import one_ahead


def test_each_is_made_while_the_one_before_is_used():
    made, asked = [threading.Event() for _ in range(5)], []

    def jobs():
        for number in range(5):
            asked.append((number, threading.current_thread()))
            yield lambda number=number: (made[number].set(), number, threading.current_thread())

    used = []
    for _, number, thread in one_ahead(jobs()):
        if number < 4:
            assert made[number + 1].wait(10), "the next one is made although nobody has asked for it"
        assert [place for place, _ in asked] == list(range(min(number + 2, 5))), "and no more than that"
        assert thread is not threading.current_thread()
        used.append(number)
    assert used == [0, 1, 2, 3, 4]
    assert {thread for _, thread in asked} == {threading.current_thread()}, "what ranks do together is done here"


def test_a_failure_comes_where_the_result_would_have():
    def job(number):
        if number == 2:
            raise ValueError("step 2")
        return number

    steps = one_ahead((lambda number=number: job(number)) for number in range(4))
    assert [next(steps), next(steps)] == [0, 1]
    with pytest.raises(ValueError, match="step 2"):
        next(steps)


def test_a_failure_between_jobs_comes_after_what_is_made_already():
    def jobs():
        yield lambda: 0
        yield lambda: 1
        raise ValueError("behind the second")

    steps = one_ahead(jobs())
    assert [next(steps), next(steps)] == [0, 1]
    with pytest.raises(ValueError, match="behind the second"):
        next(steps)


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_closing_ends_the_thread(taken):
    before = threading.active_count()
    steps = one_ahead((lambda number=number: number) for number in range(10))
    assert [next(steps) for _ in range(taken)] == list(range(taken))
    steps.close()
    assert threading.active_count() == before


def test_nothing_to_do_is_done():
    assert list(one_ahead([])) == [] and list(one_ahead([lambda: 1])) == [1]
