"""Sets of samples: widths, copies, labels, and one numbering over several sources."""

import numpy as np
import pytest

from trainer.data.rows import PackedRows, PaddedRows
from trainer.data.samples import MixedSet, SampleSet, padded_set
from trainer.errors import Refused
from trainer.types import Window

FILL, EOS = 0, 1


def padded(lengths: list[int], width: int, first: int) -> PaddedRows:
    """Documents of these lengths; the tokens of document i are all ``first + i``."""
    tokens = np.repeat(np.arange(first, first + len(lengths)), lengths)
    return PaddedRows(tokens, np.cumsum([0, *lengths[:-1]]) if lengths else np.empty(0, np.int64), Window(width, width), FILL, EOS)


def pairs(sources: list[int], targets: list[int], first: int = 100, too_long: str = "truncate") -> SampleSet:
    rows = {"source": padded(sources, 32, first), "target": padded(targets, 16, first + 1000)}
    return padded_set(rows, np.arange(len(sources)) + first, too_long, "train")


def test_each_field_has_the_width_of_its_longest():
    samples = pairs([3, 20, 40, 5], [1, 2, 9, 30])
    assert samples.lengths.tolist() == [3, 20, 32, 16]
    assert samples.widths(np.array([0])) == {"source": 8, "target": 8}
    assert samples.widths(np.array([0, 1, -1])) == {"source": 24, "target": 8}
    assert samples.widths(np.array([0, 2, 3])) == {"source": 32, "target": 16}
    assert samples.widths(np.array([-1, -1])) == samples.widths(np.array([0]))


def test_samples_are_what_was_asked_for():
    samples = pairs([3, 20, 4], [1, 2, 9])
    taken = samples.take(np.array([2, 0]), np.array([4, 5]), {"source": 8, "target": 16})
    assert taken.ids.tolist() == [2, 0]
    assert taken.epochs.tolist() == [4, 5]
    assert taken.labels.tolist() == [102, 100]
    assert taken.rows["source"].tokens.tolist() == [[102] * 4 + [FILL] * 4, [100] * 3 + [FILL] * 5]
    assert taken.rows["target"].tokens.shape == (2, 16)
    assert samples.take(np.array([2, 0])).epochs.tolist() == [0, 0]


@pytest.mark.parametrize("samples", [pairs([20, 3], [9, 1]), MixedSet({"a": pairs([], []), "b": pairs([20, 3], [9, 1])})])
def test_a_filler_is_a_copy_of_the_first_sample_cut_to_the_width(samples):
    taken = samples.take(np.array([1, -1]), None, {"source": 8, "target": 8})
    assert taken.ids.tolist() == [1, -1]
    assert taken.rows["source"].tokens[1].tolist() == [100] * 7 + [EOS]
    assert taken.labels.tolist() == [101, 100]


def test_what_is_too_long_is_cut_left_out_or_refused():
    sources, targets = [3, 40, 5, 6, 33], [1, 1, 17, 16, 40]
    assert (len(pairs(sources, targets)), pairs(sources, targets).num_too_long) == (5, 3)
    kept = pairs(sources, targets, too_long="skip")
    assert kept.too_long_first == pairs(sources, targets).too_long_first == "number 2, 3, 5"
    assert pairs([40] * 4, [1] * 4).too_long_first == "number 1, 2, 3, ..."
    assert MixedSet({"a": pairs([3], [4]), "b": kept}).too_long_first == "b: number 2, 3, 5"
    assert (len(kept), kept.num_too_long) == (2, 3)
    assert kept.lengths.tolist() == [3, 16]
    taken = kept.take(np.array([1, 0, -1]))
    assert taken.labels.tolist() == [103, 100, 100]
    assert taken.rows["target"].tokens[0].tolist() == [1103] * 16
    with pytest.raises(Refused) as refusal:
        pairs(sources, targets, too_long="refuse")
    sentence = str(refusal.value)
    assert "3 of 5 train records are longer than their row (number 2, 3, 5): " in sentence
    assert "the longest source has 40 tokens, its row takes 32 (data.sequence_length)" in sentence
    assert "the longest target has 40 tokens, its row takes 16 (data.target_length)" in sentence
    assert pairs([3], [4], too_long="refuse").num_too_long == 0


def test_a_mix_numbers_the_samples_of_its_parts_one_after_the_other():
    left, right = pairs([3, 20, 4], [1, 2, 9], 100), pairs([7, 30], [8, 3], 200)
    mixed = MixedSet({"left": left, "none": pairs([], []), "right": right})
    assert len(mixed) == 5
    assert mixed.lengths.tolist() == [*left.lengths, *right.lengths]
    ids = np.array([4, 0, 3, -1, 2])
    taken = mixed.take(ids, np.arange(5))
    assert taken.ids.tolist() == ids.tolist()
    assert taken.epochs.tolist() == [0, 1, 2, 3, 4]
    assert taken.labels.tolist() == [201, 100, 200, 100, 102]
    assert taken.rows["source"].tokens[:, 0].tolist() == [201, 100, 200, 100, 102]
    assert taken.rows["target"].filled.tolist() == [3, 1, 8, 1, 9]
    assert taken.rows["source"].tokens.shape == (5, 32)
    assert mixed.widths(np.array([0, 3])) == {"source": 8, "target": 8}
    assert mixed.widths(np.array([1, 4])) == {"source": 32, "target": 8}
    assert mixed.widths(np.array([-1])) == {"source": 8, "target": 8}


def test_packed_sets_have_one_width():
    samples = SampleSet({"text": PackedRows(np.arange(50), np.array([0, 20]), Window(8, 9), FILL)})
    assert samples.widths(np.array([0, -1])) == {"text": 9}
    assert samples.lengths.tolist() == [9] * 7
    assert samples.take(np.array([6])).labels is None


def test_an_id_of_another_corpus_is_noticed():
    for samples in (pairs([3], [4]), MixedSet({"a": pairs([3], [4])})):
        with pytest.raises(AssertionError, match="made for another one"):
            samples.take(np.array([1]), None, {"source": 8, "target": 8})
