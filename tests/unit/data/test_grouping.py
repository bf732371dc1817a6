"""Length grouping: what a window holds stays, what a step pads goes."""

import numpy as np
import pytest

from trainer.data.grouping import LengthGrouped
from trainer.data.mixing import MixOrder
from trainer.data.order import SampleOrder, permuted, step_draws


def log_normal(count: int, seed: int = 0) -> np.ndarray:
    """Lengths as texts have them: median 200 tokens, a long tail, cut at 2048."""
    return np.clip(np.exp(np.random.default_rng(seed).normal(np.log(200), 0.8, count)), 1, 2048).astype(np.int64)


def padding(order, lengths: np.ndarray, global_batch: int, steps: int = 512) -> float:
    """The share of slots that hold nothing where each step's samples are padded to the longest of them."""
    batches = lengths[step_draws(order, 1, steps, global_batch).ids]
    return 1 - batches.sum() / (batches.max(axis=1).sum() * global_batch)


@pytest.mark.parametrize(("global_batch", "window"), [(1, 5), (16, 64), (10, 7), (33, 1)])
def test_each_window_holds_what_it_held(global_batch, window):
    plain = SampleOrder(1000, 3)
    grouped = LengthGrouped(plain, log_normal(1000), global_batch, 0, window)
    size = window * global_batch
    for number in (0, 1, 5, 10**6):
        positions = np.arange(number * size, (number + 1) * size)
        held, holds = plain.at(positions), grouped.at(positions)
        assert sorted(zip(holds.ids, holds.epochs, strict=True)) == sorted(zip(held.ids, held.epochs, strict=True))


def test_the_stream_is_the_specification():
    """A second reading of the docstring, in plain Python."""
    lengths = log_normal(300) // 40  # so that many are equal
    plain, global_batch, window = SampleOrder(300, 2), 6, 9
    grouped = LengthGrouped(plain, lengths, global_batch, seed=1, window=window)
    numbers = []
    for number in range(4):
        first = number * window * global_batch
        ids = plain.at(np.arange(first, first + window * global_batch)).ids.tolist()
        by_length = sorted(range(len(ids)), key=lambda place: (lengths[ids[place]], place))
        sorted_batches = [[ids[place] for place in by_length[i : i + global_batch]] for i in range(0, len(ids), global_batch)]
        seen = step_draws(grouped, number * window + 1, window, global_batch).ids.tolist()
        assert sorted(seen) == sorted(sorted_batches)
        numbers.append([sorted_batches.index(batch) for batch in seen])
    expected = [permuted(np.arange(9), 9, [f"isotrain groups 1 {number}"], np.zeros(9, int)).tolist() for number in range(4)]
    assert numbers == expected


def test_long_and_short_batches_are_mixed_anew_in_each_window_and_by_seed():
    """Each of 8 places in a window is as likely to get the longest batch as any other."""
    lengths = np.arange(1000)

    def longest(seed: int, count: int) -> np.ndarray:
        order = LengthGrouped(SampleOrder(1000, 0), lengths, 4, seed, window=8)
        return lengths[step_draws(order, 1, 8 * count, 4).ids].max(axis=1).reshape(count, 8).argmax(axis=1)

    places = longest(0, 2000)
    counts = np.bincount(places, minlength=8)
    assert ((counts - 250) ** 2 / 250).sum() < 40, "a chi-square with 7 degrees of freedom exceeds this once in 800,000 times"
    assert abs((places == longest(1, 2000)).mean() - 1 / 8) < 0.05


@pytest.mark.parametrize("global_batch", [8, 16, 64, 512])
def test_padding_falls_to_a_tenth(global_batch):
    """Log-normal lengths: 61 to 86 % of the slots are padding without, 5 to 6 % with grouping."""
    lengths = log_normal(50_000)
    plain = SampleOrder(50_000, 1)
    grouped = LengthGrouped(plain, lengths, global_batch, 1)
    assert padding(plain, lengths, global_batch) > 0.6
    assert padding(grouped, lengths, global_batch) < 0.07


def test_a_mix_is_grouped_by_the_lengths_of_all_its_sources():
    mix = MixOrder([SampleOrder(3000, 1), SampleOrder(2000, 2)], [51, 49], [51, 49], 1)
    lengths = np.concatenate([log_normal(3000, 1), 3 * log_normal(2000, 2)])
    grouped = LengthGrouped(mix, lengths, 16, 0)
    assert grouped.num_samples == 5000
    assert padding(grouped, lengths, 16) < 0.15 < 0.6 < padding(mix, lengths, 16)
    for window in range(8):
        ids = grouped.at(np.arange(window * 1024, (window + 1) * 1024)).ids
        assert abs((ids < 3000).sum() - 0.51 * 1024) <= 1, "whole windows keep the shares of the mix"


def test_equal_lengths_keep_their_order_inside_a_batch():
    plain = SampleOrder(100, 0)
    grouped = LengthGrouped(plain, np.ones(100), 4, 0, window=5)
    assert sorted(step_draws(grouped, 1, 5, 4).ids.tolist()) == sorted(step_draws(plain, 1, 5, 4).ids.tolist())


def test_a_window_is_sorted_once_for_all_its_steps():
    class Watched(SampleOrder):
        asked = 0

        def at(self, positions):
            self.asked += positions.size
            return super().at(positions)

    plain = Watched(500, 0)
    grouped = LengthGrouped(plain, log_normal(500), 16, 0, window=8)
    for step in range(1, 41):
        step_draws(grouped, step, 1, 16)
    assert plain.asked == 40 * 16
