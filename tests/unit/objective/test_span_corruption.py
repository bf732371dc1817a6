"""T5's denoising: exact lengths, nothing lost, and every way to cut a text into spans equally likely."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.unit.objective.corpora import SENTINELS, VOCABULARY, context, packed, padded, take
from trainer.objective.span_corruption import SpanCorruption
from trainer.types import IGNORE, Rows, Samples

EOS = VOCABULARY.eos


def t5_lengths(raw, density, mean_span):
    """How long T5's preprocessing makes the input and the target of ``raw`` tokens, by its formula."""
    noise = round(raw * density)
    spans = round(noise / mean_span)
    return raw - noise + spans + 1, noise + spans + 1


def one_text_each(texts):
    """Samples of these arrays of tokens, filled up to the longest."""
    width = max(text.size for text in texts)
    tokens = np.full((len(texts), width), VOCABULARY.fill)
    for row, text in enumerate(texts):
        tokens[row, : text.size] = text
    starts = np.zeros(tokens.shape, bool)
    rows = Rows(tokens, np.tile(np.arange(width), (len(texts), 1)), starts, np.array([text.size for text in texts]))
    ids = np.arange(len(texts))
    return Samples(ids, np.zeros_like(ids), {"text": rows})


def pieces(batch, row):
    """The kept and the left-out pieces of a row, read from what the model is given and what it is asked for."""
    seen = batch.inputs["input_ids"][row, : batch.inputs["lengths"][row]].tolist()
    wanted = batch.labels[row][batch.labels[row] != IGNORE].tolist()
    found = []
    for tokens in (seen, wanted):
        assert tokens.pop() == EOS
        cut = [[]]
        for token in tokens:
            if token in SENTINELS:
                assert token == SENTINELS[len(cut) - 1], "sentinels stand in their order"
                cut.append([])
            else:
                cut[-1].append(token)
        found.append(cut)
    kept, left_out = found
    assert kept.pop() == [] and left_out.pop(0) == [], "the text ends, and the target begins, with a span"
    assert len(kept) == len(left_out)
    return kept, left_out


class TestLengths:
    def test_those_of_t5(self):
        assert SpanCorruption().raw_length(512) == 568
        assert SpanCorruption().lengths(568) == (512, 114)
        assert SpanCorruption().needs(512, None).fields["text"].width == 568

    @pytest.mark.parametrize(
        ("density", "mean_span"), [(0.15, 3.0), (0.15, 8.0), (0.15, 1.0), (0.3, 3.0), (0.5, 3.0), (0.5, 32.0)], ids=str
    )
    def test_those_of_its_formula(self, density, mean_span):
        objective = SpanCorruption(noise_density=density, mean_span=mean_span)
        for raw in range(200, 1200, 7):
            assert objective.lengths(raw) == t5_lengths(raw, density, mean_span)
        for length in (128, 200, 513, 1024):
            fits = [raw for raw in range(length // 2, 4 * length) if t5_lengths(raw, density, mean_span)[0] <= length]
            assert objective.raw_length(length) == max(fits)

    @pytest.mark.parametrize(("density", "mean_span"), [(0.15, 3.0), (0.02, 5.0), (0.45, 1.0), (0.9, 2.0), (0.99, 1.0)], ids=str)
    def test_of_every_text_are_met_exactly(self, density, mean_span):
        objective = SpanCorruption(noise_density=density, mean_span=mean_span)
        many = replace(context(), vocabulary=replace(VOCABULARY, sentinels=tuple(range(200, 300))))
        for raw in range(2, 90):
            batch = objective.collate(one_text_each([np.arange(10, 10 + raw)]), many)
            seen, wanted = objective.lengths(raw)
            assert batch.inputs["input_ids"].shape == (1, seen) and batch.inputs["lengths"].tolist() == [seen], raw
            assert batch.labels.shape == (1, wanted) and (batch.labels != IGNORE).all() and batch.counts == {"targets": wanted}, raw
            assert batch.inputs["decoder_input_ids"].shape == (1, wanted)

    @pytest.mark.parametrize("length", [3, 4, 8, 64, 512])
    def test_as_many_sentinels_are_asked_for_as_a_full_row_has_spans(self, length):
        objective = SpanCorruption(noise_density=0.3, mean_span=2.0)
        needs = objective.needs(length, None)
        raw = needs.fields["text"].width
        assert needs.num_sentinels == max(round(round(raw * 0.3) / 2), 1) and needs.special_tokens == ("sentinels",)
        assert objective.lengths(raw)[0] <= length < objective.lengths(raw + 1)[0]


class TestPieces:
    def test_input_and_target_together_are_the_text(self):
        objective = SpanCorruption()
        samples = packed(objective, 48)
        taken = take(samples, np.arange(len(samples)))
        batch, rows = objective.collate(taken, context()), taken.rows["text"]
        assert 2 < rows.filled[-1] < rows.tokens.shape[1], "a row that is not full is among them"
        for row, (tokens, filled) in enumerate(zip(rows.tokens.tolist(), rows.filled.tolist(), strict=True)):
            kept, left_out = pieces(batch, row)
            assert [token for pair in zip(kept, left_out, strict=True) for piece in pair for token in piece] == tokens[:filled]
            assert all(kept) and all(left_out), "no two spans touch, and none is empty"
            noise = round(filled * 0.15)
            assert sum(map(len, left_out)) == noise and len(left_out) == max(round(noise / 3), 1)
        assert (batch.inputs["input_ids"] == VOCABULARY.fill).sum() == (batch.inputs["lengths"].max() - batch.inputs["lengths"]).sum()

    def test_every_division_is_equally_likely(self):
        """Ten tokens, five of them left out in two spans: four divisions of what is kept, four of what is not."""
        objective = SpanCorruption(noise_density=0.5, mean_span=2.5)
        batch = objective.collate(one_text_each([np.arange(10, 20)] * 8000), context())
        seen = Counter(tuple(tuple(map(len, side)) for side in pieces(batch, row)) for row in range(8000))
        ways = [(part, 5 - part) for part in range(1, 5)]
        assert set(seen) == {(kept, left_out) for kept in ways for left_out in ways}
        assert sum((count - 500) ** 2 / 500 for count in seen.values()) < 15 + 4 * 30**0.5  # 15 degrees of freedom

    def test_with_three_spans_too(self):
        objective = SpanCorruption(noise_density=0.5, mean_span=2.0)
        batch = objective.collate(one_text_each([np.arange(10, 22)] * 8000), context())
        seen = Counter(tuple(map(len, pieces(batch, row)[1])) for row in range(8000))
        assert len(seen) == 10 and all(sum(way) == 6 for way in seen)  # two cuts out of five places
        assert sum((count - 800) ** 2 / 800 for count in seen.values()) < 9 + 4 * 18**0.5

    def test_every_token_but_the_first_may_be_left_out(self):
        batch = SpanCorruption().collate(one_text_each([np.arange(10, 90)] * 2000), context())
        left_out = Counter(token for row in range(2000) for span in pieces(batch, row)[1] for token in span)
        assert set(left_out) == set(range(11, 90)) and left_out[89] == 2000, "as in T5, a text ends with a span"


class TestWhatDecides:
    def test_the_seed_the_epoch_and_the_sample_only(self):
        objective = SpanCorruption()
        samples = packed(objective, 48)
        ids = np.arange(len(samples))

        def seen(order, epoch=0, seed=11):
            return objective.collate(take(samples, order, epoch), context(seed)).inputs["input_ids"]

        assert torch.equal(seen(ids[::-1]), seen(ids).flip(0)) and torch.equal(seen([1, -1, 1])[[0, 2]], seen([1, 1]))
        assert not torch.equal(seen(ids, epoch=1), seen(ids)) and not torch.equal(seen(ids, seed=12), seen(ids))

    def test_not_how_wide_a_row_is_padded(self):
        objective = SpanCorruption()
        samples = padded(objective, 64)
        ids = np.arange(len(samples))
        narrow, wide = (objective.collate(take(samples, ids, widths={"text": width}), context()) for width in (40, 71))
        assert wide.labels.shape[1] > narrow.labels.shape[1] and wide.counts == narrow.counts
        for row in ids:
            assert pieces(narrow, row) == pieces(wide, row)


def test_the_decoder_sees_what_it_has_written_before():
    samples = packed(SpanCorruption(), 48)
    batch = SpanCorruption().collate(take(samples, [0, len(samples) - 1]), context(decoder_start=7))
    for written, wanted in zip(batch.inputs["decoder_input_ids"].tolist(), batch.labels.tolist(), strict=True):
        wanted = [token for token in wanted if token != IGNORE]
        assert written[: len(wanted)] == [7, *wanted[:-1]] and set(written[len(wanted) + 1 :]) <= {VOCABULARY.fill}


def test_a_copy_and_a_text_of_one_token_have_no_target():
    samples = packed(SpanCorruption(), 48)
    copy = SpanCorruption().collate(take(samples, [-1]), context())
    assert copy.counts == {"targets": 0} and (copy.labels == IGNORE).all() and copy.inputs["lengths"].tolist() == [48]
    batch = SpanCorruption().collate(one_text_each([np.array([10]), np.arange(10, 30)]), context())
    assert (batch.labels[0] == IGNORE).all() and batch.inputs["lengths"].tolist()[0] == 2
    assert batch.inputs["input_ids"][0, :2].tolist() == [10, EOS]


def test_without_an_end_token_nothing_ends_it():
    endless = replace(context(), vocabulary=replace(VOCABULARY, eos=None))
    batch = SpanCorruption().collate(one_text_each([np.arange(10, 30)]), endless)
    assert batch.inputs["input_ids"][0, -2:].tolist() == [SENTINELS[0], VOCABULARY.fill] and batch.labels[0, -1] == IGNORE
    assert batch.counts == {"targets": 4} and batch.inputs["lengths"].tolist() == [18]
