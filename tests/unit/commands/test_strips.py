"""What a batch says of a sample, for every objective: which tokens are read, which are predicted, and what stood where."""

import numpy as np
import pytest
import torch

from tests.unit.objective.corpora import VOCABULARY, context, packed, padded, take
from trainer.commands.strips import Role, label_of, strips
from trainer.objective.causal_lm import CausalLM
from trainer.objective.classification import Classification
from trainer.objective.masked_lm import MaskedLM
from trainer.objective.seq2seq import Seq2Seq
from trainer.objective.span_corruption import SpanCorruption
from trainer.types import IGNORE, Batch

LENGTH = 40
MANY = 6


def strips_of(objective, make=packed):
    """(raw samples, batch, strips) of the first samples, the last one not full."""
    samples = make(objective, LENGTH)
    taken = take(samples, np.arange(min(MANY, len(samples))))
    batch = objective.collate(taken, context())
    return taken, batch, [strips(batch, taken, row, VOCABULARY.mask) for row in range(taken.ids.size)]


@pytest.mark.parametrize("make", [packed, padded])
def test_a_decoder_predicts_every_token_but_the_first_of_a_row_and_of_a_document(make):
    taken, batch, shown = strips_of(CausalLM(), make)
    rows = taken.rows["text"]
    for row, (strip,) in enumerate(shown):
        filled = rows.filled[row]
        assert strip.seen.tolist() == rows.tokens[row, :filled].tolist() and strip.truth is strip.seen
        first = (np.arange(filled) == 0) | rows.starts[row, :filled]
        assert [role is Role.NEXT for role in strip.roles] == (~first).tolist()
        begins = np.flatnonzero(rows.starts[row, :filled])
        assert np.flatnonzero(strip.starts).tolist() == [place for place in begins if 0 < place < LENGTH]
        assert strip.read == min(filled, LENGTH) and strip.slots == batch.inputs["input_ids"].shape[1]
    predicted = sum(role is Role.NEXT for (strip,) in shown for role in strip.roles)
    assert predicted == batch.counts["targets"]
    if make is packed:
        assert any(strip.starts.any() for (strip,) in shown) and shown[-1][0].read < LENGTH < shown[0][0].seen.size


@pytest.mark.parametrize("make", [packed, padded])
@pytest.mark.parametrize("whole_word", [False, True])
def test_a_masked_row_shows_what_is_seen_and_what_was_there(make, whole_word):
    objective = MaskedLM(probability=0.5, masked=0.4, random=0.3, whole_word=whole_word)
    taken, batch, shown = strips_of(objective, make)
    rows, roles = taken.rows["text"], []
    for row, (strip,) in enumerate(shown):
        filled = rows.filled[row]
        assert strip.truth.tolist() == rows.tokens[row, :filled].tolist()
        assert strip.seen.tolist() == batch.inputs["input_ids"][row, :filled].tolist()
        for seen, truth, role in zip(strip.seen, strip.truth, strip.roles, strict=True):
            assert (role in (Role.READ, Role.KEPT)) == (seen == truth)
            assert (role is Role.HIDDEN) == (seen == VOCABULARY.mask)
        roles += strip.roles
    predicted = [role for role in roles if role is not Role.READ]
    assert len(predicted) == batch.counts["targets"] and set(roles) == {Role.READ, Role.HIDDEN, Role.REPLACED, Role.KEPT}


def test_labels_in_their_own_places_are_shown_without_a_list_of_places_too():
    """As a plugin might collate: labels of the width of the input, at the slots themselves."""
    objective = MaskedLM(probability=0.5)
    taken, batch, shown = strips_of(objective)
    dense = np.full(batch.inputs["input_ids"].shape, IGNORE)
    dense.reshape(-1)[batch.places.numpy()] = batch.labels.numpy()
    other = Batch(batch.inputs, torch.from_numpy(dense), batch.counts)
    for row, (strip,) in enumerate(shown):
        (same,) = strips(other, taken, row, VOCABULARY.mask)
        assert same.roles == strip.roles and np.array_equal(same.truth, strip.truth)


def test_left_out_spans_put_back_give_the_raw_row():
    taken, _, shown = strips_of(SpanCorruption())
    rows = taken.rows["text"]
    for row, (reads, writes) in enumerate(shown):
        assert (reads.title, writes.title) == ("reads", "writes") and set(reads.roles) == {Role.READ}
        assert writes.roles[0] is Role.NO_TARGET and set(writes.roles[1:]) == {Role.NEXT}
        assert writes.read == writes.seen.size - 1, "the last token is written and never read"
        spans: dict[int, list[int]] = {}
        for token in writes.seen[1:-1].tolist():
            if token in VOCABULARY.sentinels:
                spans[token] = []
            else:
                spans[list(spans)[-1]].append(token)
        whole = [piece for token in reads.seen[:-1].tolist() for piece in spans.get(token, [token])]
        assert whole == rows.tokens[row, : rows.filled[row]].tolist() and spans


def test_a_pair_is_a_source_that_is_read_and_a_target_that_is_written():
    taken, batch, shown = strips_of(Seq2Seq(), padded)
    for row, (reads, writes) in enumerate(shown):
        source, target = (taken.rows[field] for field in ("source", "target"))
        assert reads.seen.tolist() == source.tokens[row, : source.filled[row]].tolist()
        assert writes.seen[1:].tolist() == target.tokens[row, : target.filled[row]].tolist()
        assert writes.seen[0] == batch.inputs["decoder_input_ids"][row, 0] and writes.roles[0] is Role.NO_TARGET
        assert label_of(batch, row, None) is None


@pytest.mark.parametrize("kind", ["single_label", "multi_label", "regression"])
def test_a_whole_text_has_a_label(kind):
    taken, batch, shown = strips_of(Classification(kind=kind), padded)
    names = None if kind == "regression" else ("a", "b", "c")
    for row, (strip,) in enumerate(shown):
        assert set(strip.roles) == {Role.READ} and strip.title == "reads"
        told, label = label_of(batch, row, names), taken.labels[row]
        if kind == "single_label":
            assert told == names[label]
        elif kind == "multi_label":
            assert told == (", ".join(name for name, has in zip(names, label, strict=True) if has) or "(none)")
        else:
            assert float(told) == pytest.approx(label, rel=1e-5)


def test_runs_break_at_roles_kinds_and_documents():
    _, _, shown = strips_of(CausalLM())
    (strip,) = shown[0]
    kinds = np.isin(strip.truth, VOCABULARY.special)
    runs = strip.runs(kinds)
    assert [place for begin, end in runs for place in range(begin, end)] == list(range(strip.seen.size))
    for begin, end in runs:
        assert len({strip.roles[place] for place in range(begin, end)}) == len(set(kinds[begin:end])) == 1
        assert not strip.starts[begin + 1 : end].any()
    assert set(np.flatnonzero(strip.starts)) <= {begin for begin, _ in runs}
