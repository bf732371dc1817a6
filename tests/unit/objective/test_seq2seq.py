"""Sequence to sequence: what the decoder sees and is asked for, and what is said of the targets that it writes."""

import math

import numpy as np
import pytest

from tests.unit.objective.corpora import LENGTHS, VOCABULARY, context, padded, take
from trainer.objective.causal_lm import CausalLM
from trainer.objective.seq2seq import Seq2Seq
from trainer.types import IGNORE, Outputs


def test_source_and_target_stand_where_the_model_takes_them():
    samples = padded(Seq2Seq(), 32, 16)
    taken = take(samples, [2, -1, 0])
    batch = Seq2Seq().collate(taken, context(decoder_start=7))
    source, target = taken.rows["source"], taken.rows["target"]
    assert batch.inputs["input_ids"].tolist() == source.tokens.tolist() and batch.inputs["lengths"].tolist() == source.filled.tolist()
    for row, filled in ((0, target.filled[0]), (2, target.filled[2])):
        wanted = target.tokens[row, :filled].tolist()
        assert batch.labels[row].tolist() == wanted + [IGNORE] * (len(batch.labels[row]) - filled)
        assert batch.inputs["decoder_input_ids"][row].tolist() == [7, *target.tokens[row, :-1].tolist()]
    assert (batch.labels[1] == IGNORE).all() and batch.counts == {"targets": int(target.filled[0] + target.filled[2])}
    assert batch.ids.tolist() == [2, -1, 0]


def test_target_length_is_that_of_the_source_unless_said():
    assert {name: window.width for name, window in Seq2Seq().needs(32, None).fields.items()} == {"source": 32, "target": 32}
    samples = padded(Seq2Seq(), 32, 8)
    assert take(samples, np.arange(len(LENGTHS))).rows["target"].tokens.shape == (len(LENGTHS), 8)


def test_targets_that_are_cut_end_with_the_end():
    taken = take(padded(Seq2Seq(), 32, 8), np.arange(len(LENGTHS)))
    labels = Seq2Seq().collate(taken, context()).labels
    assert ((labels == VOCABULARY.eos).sum(1) == 1).all(), "the model learns to stop"


@pytest.mark.parametrize(
    ("written", "wanted", "rouge_l", "exact"),
    [
        (["a cat sat"], ["a cat sat"], 1.0, 1.0),
        (["a cat sat"], ["dog"], 0.0, 0.0),
        # Longest common subsequences of 2 and 1 words: F of 2/3 and 2/4, and of 1/1 and 1/2.
        (["the cat sat", "b"], ["a cat never sat", "a b"], (2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4) + 2 / 3) / 2, 0.0),
        ([" same ", "other", "", "x y"], ["same", "another", "empty", "y x"], (1 + 0 + 0 + 0.5) / 4, 0.25),
    ],
)
def test_rouge_and_exact_match_by_hand(written, wanted, rouge_l, exact):
    told = Seq2Seq().metrics({"nll": math.log(5)}, Outputs(texts=tuple(written), references=tuple(wanted)))
    assert told == {
        "loss": math.log(5),
        "perplexity": pytest.approx(5),
        "rouge_l": pytest.approx(rouge_l, abs=1e-6),
        "exact_match": exact,
    }


def test_without_texts_only_the_likelihood_is_told():
    assert Seq2Seq().metrics({"nll": 0.0}, Outputs()) == {"loss": 0.0, "perplexity": 1.0}


def test_a_likelihood_beyond_all_numbers_has_an_infinite_perplexity():
    assert CausalLM().metrics({"nll": 1e6}, Outputs())["perplexity"] == math.inf
    assert CausalLM().metrics({"nll": 2.0}, Outputs())["perplexity"] == math.exp(2)
