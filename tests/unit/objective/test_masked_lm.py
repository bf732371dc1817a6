"""Masked language modelling: which tokens are hidden, how, and that nothing but the seed, the sample and its epoch has a say."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.unit.objective.corpora import TEXT, VOCABULARY, WORD_STARTS, context, packed, padded, take
from trainer.objective.masked_lm import MaskedLM
from trainer.types import Rows, Samples, Vocabulary

LONG = (64,) * 4000


def within(count, total, share):
    """Whether a share of a binomial draw is as it should be, to 4.5 deviations: a seed in 100,000 would miss it, and seeds are fixed."""
    return abs(count - total * share) <= 4.5 * math.sqrt(total * share * (1 - share))


def hide(objective, samples, ids, epoch=0, seed=11, widths=None):
    """Rows as they were, as the model sees them, and which of their tokens are to be predicted."""
    taken = take(samples, ids, epoch, widths)
    batch = objective.collate(taken, context(seed))
    chosen = np.zeros(taken.rows["text"].tokens.size, bool)
    chosen[batch.places.numpy()] = True
    return taken.rows["text"], batch.inputs["input_ids"].numpy(), chosen.reshape(taken.rows["text"].tokens.shape), batch


@pytest.fixture(scope="module")
def many():
    """A quarter of a million tokens, 4000 documents of 62 words of text, bos and eos."""
    return packed(MaskedLM(), 64, LONG)


class TestShares:
    @pytest.mark.parametrize("shares", [(0.15, 0.8, 0.1), (0.3, 0.5, 0.5), (0.05, 1.0, 0.0), (0.4, 0.0, 1.0), (0.2, 0.0, 0.0)], ids=str)
    def test_of_hidden_replaced_and_left(self, many, shares):
        probability, masked, random = shares
        objective = MaskedLM(probability=probability, masked=masked, random=random)
        rows, seen, chosen, batch = hide(objective, many, np.arange(len(many)))
        text = ~np.isin(rows.tokens, VOCABULARY.special)
        assert text.sum() == 4000 * 62 and not (chosen & ~text).any()
        total = int(chosen.sum())
        assert within(total, int(text.sum()), probability)
        assert np.array_equal(seen[~chosen], rows.tokens[~chosen]), "what is not predicted is seen as it is"
        assert batch.counts == {"targets": total} and np.array_equal(batch.labels.numpy(), rows.tokens[chosen])
        hidden = seen[chosen] == VOCABULARY.mask
        other = ~hidden & (seen[chosen] != rows.tokens[chosen])
        size = VOCABULARY.size  # a random token is one time in 100 the mask, one time the token itself
        assert within(int(hidden.sum()), total, masked + random / size)
        assert within(int(other.sum()), total, random * (1 - 2 / size))

    def test_at_every_place_and_of_every_token(self, many):
        rows, _, chosen, _ = hide(MaskedLM(), many, np.arange(len(many)))
        for place in range(64):
            share = chosen[:, place].sum()
            assert within(share, 4000, 0.15) if 0 < place < 63 else share == 0, place
        for token in range(*TEXT):
            alike = rows.tokens == token
            assert within(int(chosen[alike].sum()), int(alike.sum()), 0.15), token

    def test_random_tokens_are_any_of_the_vocabulary_alike(self, many):
        _, seen, chosen, _ = hide(MaskedLM(probability=0.9, masked=0.0, random=1.0), many, np.arange(len(many)))
        cells = np.bincount(seen[chosen], minlength=VOCABULARY.size)
        expected = chosen.sum() / VOCABULARY.size
        assert cells.size == VOCABULARY.size and expected > 2000
        assert ((cells - expected) ** 2 / expected).sum() < 99 + 5 * math.sqrt(2 * 99)

    def test_neighbours_are_chosen_independently(self, many):
        _, _, chosen, _ = hide(MaskedLM(), many, np.arange(len(many)))
        inner = chosen[:, 1:63]
        assert within(int((inner[:, 1:] & inner[:, :-1]).sum()), 4000 * 61, 0.15**2)


class TestWholeWords:
    def words(self, rows):
        """The number of each token's word, counted here once more, with bos and eos as words of their own."""
        begins = WORD_STARTS[rows.tokens] | (np.roll(rows.tokens, 1, axis=1) == VOCABULARY.bos)
        return np.cumsum(begins, axis=1)

    def test_all_tokens_of_a_word_or_none(self, many):
        rows, _, chosen, _ = hide(MaskedLM(whole_word=True), many, np.arange(len(many)))
        words = self.words(rows)
        same = words[:, 1:] == words[:, :-1]
        assert same.mean() > 0.5, "words must have several tokens for this to mean anything"
        assert np.array_equal(chosen[:, 1:][same], chosen[:, :-1][same])

    def test_words_of_any_length_are_chosen_alike(self, many):
        rows, _, chosen, _ = hide(MaskedLM(whole_word=True), many, np.arange(len(many)))
        found = {}
        for row, numbers in zip(chosen[:, 1:63], self.words(rows)[:, 1:63], strict=True):
            _, first, lengths = np.unique(numbers, return_index=True, return_counts=True)
            for length, picked in zip(lengths.tolist(), row[first].tolist(), strict=True):
                found.setdefault(length, []).append(picked)
        assert sum(len(picked) > 2000 for picked in found.values()) >= 5
        for length, picked in found.items():
            if len(picked) > 2000:
                assert within(sum(picked), len(picked), 0.15), length

    def test_each_token_of_a_word_is_hidden_or_replaced_by_itself(self, many):
        rows, seen, chosen, _ = hide(MaskedLM(whole_word=True), many, np.arange(len(many)))
        words = self.words(rows)
        pairs = chosen[:, 1:] & chosen[:, :-1] & (words[:, 1:] == words[:, :-1])
        hidden = seen == VOCABULARY.mask
        assert within(int((hidden[:, 1:] & hidden[:, :-1])[pairs].sum()), int(pairs.sum()), 0.801**2)

    def test_a_row_that_begins_inside_a_word_and_a_document_that_begins_with_none(self):
        """12 begins a word, 10 and 16 do not; but 16 is a document's first token, under a vocabulary without bos."""
        tokens = np.tile(np.array([10, 11, 13, 12, 14, 16, 17, 19]), (3000, 1))
        starts = np.zeros(tokens.shape, bool)
        starts[:, 5] = True
        rows = Rows(tokens, np.tile([*range(5), *range(3)], (3000, 1)), starts, np.full(3000, 8))
        ids = np.arange(3000)
        batch = MaskedLM(whole_word=True, masked=1.0, random=0.0).collate(Samples(ids, np.zeros_like(ids), {"text": rows}), context())
        hidden = batch.inputs["input_ids"].numpy() == VOCABULARY.mask
        for begin, end in ((0, 3), (3, 5), (5, 8)):
            assert (hidden[:, begin:end].all(1) == hidden[:, begin:end].any(1)).all()
            assert within(int(hidden[:, begin].sum()), 3000, 0.15)
        assert within(int((hidden[:, 3] & hidden[:, 5]).sum()), 3000, 0.15**2)


class TestWhatDecides:
    def test_the_seed_the_epoch_and_the_sample_only(self):
        samples = packed(MaskedLM(), 24)
        ids = np.arange(len(samples))
        _, seen, _, batch = hide(MaskedLM(), samples, ids)
        for order in (ids[::-1], ids[[4, 1]], ids[2:3], np.array([3, 3, -1, 0])):
            _, again, _, part = hide(MaskedLM(), samples, order)
            real = order >= 0
            assert np.array_equal(again[real], seen[order[real]])
            assert part.counts["targets"] == sum(hide(MaskedLM(), samples, [id])[2].sum() for id in order[real])
        assert not np.array_equal(hide(MaskedLM(), samples, ids, epoch=1)[1], seen)
        assert not np.array_equal(hide(MaskedLM(), samples, ids, seed=12)[1], seen)
        assert torch.equal(hide(MaskedLM(), samples, ids)[3].labels, batch.labels)

    def test_each_epoch_draws_anew(self, many):
        ids = np.arange(500)
        first, second = (hide(MaskedLM(), many, ids, epoch=epoch)[2][:, 1:63] for epoch in (0, 1))
        assert within(int((first & second).sum()), first.size, 0.15**2)

    @pytest.mark.parametrize("whole_word", [False, True])
    def test_not_how_wide_a_row_is_padded(self, whole_word):
        objective = MaskedLM(probability=0.5, whole_word=whole_word)
        samples = padded(objective, 64)
        ids = np.arange(len(samples))
        _, narrow, chosen, _ = hide(objective, samples, ids, widths={"text": 40})
        _, wide, chosen_wide, _ = hide(objective, samples, ids, widths={"text": 64})
        assert np.array_equal(wide[:, :40], narrow) and np.array_equal(chosen_wide[:, :40], chosen) and not chosen_wide[:, 40:].any()


def test_the_last_row_is_filled_up_and_its_fill_is_never_chosen():
    objective = MaskedLM(probability=0.99)
    samples = packed(objective, 24)
    rows, seen, chosen, batch = hide(objective, samples, [len(samples) - 1])
    (filled,) = rows.filled
    assert 0 < filled < 24 and batch.inputs["lengths"].tolist() == [filled]
    assert not chosen[0, filled:].any() and (seen[0, filled:] == VOCABULARY.fill).all() and chosen[0, :filled].sum() > filled / 2


def test_fill_is_never_chosen_where_it_looks_like_text():
    """A vocabulary without pad and eos fills up with id 0."""
    plain = Vocabulary(size=100, bos=None, eos=None, pad=None, sha256="", mask=3, special=(3,))
    rows = Rows(np.zeros((50, 20), np.int64), np.tile(np.arange(20), (50, 1)), np.zeros((50, 20), bool), np.full(50, 12))
    ids = np.arange(50)
    batch = MaskedLM(probability=0.99).collate(Samples(ids, np.zeros_like(ids), {"text": rows}), replace(context(), vocabulary=plain))
    assert (batch.places % 20 < 12).all() and batch.counts["targets"] > 550


def test_a_row_of_special_tokens_has_no_target_and_a_copy_neither():
    samples = packed(MaskedLM(probability=0.99), 8, (2, 2, 2, 2))
    batch = hide(MaskedLM(probability=0.99), samples, [0])[3]
    assert batch.counts == {"targets": 0} and batch.labels.shape == batch.places.shape == (0,)
    samples = packed(MaskedLM(probability=0.99), 24)
    rows, seen, chosen, batch = hide(MaskedLM(probability=0.99), samples, [-1])
    assert not chosen.any() and np.array_equal(seen, rows.tokens) and batch.counts == {"targets": 0}


def test_the_corpus_is_not_written_to():
    samples = packed(MaskedLM(), 24)
    before = take(samples, np.arange(len(samples))).rows["text"].tokens
    hide(MaskedLM(probability=0.9), samples, np.arange(len(samples)))
    assert np.array_equal(take(samples, np.arange(len(samples))).rows["text"].tokens, before)


def test_shares_that_exceed_the_whole_are_a_problem():
    assert MaskedLM(masked=0.8, random=0.2).problems() == []
    (problem,) = MaskedLM(masked=0.8, random=0.3).problems()
    assert "objective.masked=0.8" in problem and "objective.random=0.3" in problem
