"""Against the world: on one batch, every family's loss is the one that transformers' own class computes from its own inputs.

That masks are drawn as its collator draws them is in tests/unit/objective/test_against_the_collator.py.
"""

import numpy as np
import pytest
import torch

from tests.unit.objective.corpora import CLASSES, VOCABULARY, packed, padded, take
from tests.unit.objective.pairs import MODELS, SEQ2SEQ, Pair, mask_of, model_of, pieces, whole_labels
from trainer.objective.causal_lm import CausalLM
from trainer.objective.classification import Classification
from trainer.objective.masked_lm import MaskedLM
from trainer.objective.seq2seq import Seq2Seq
from trainer.objective.span_corruption import SpanCorruption
from trainer.types import IGNORE

LENGTH = 40
ALL = np.arange(15)
ATTENTION = pytest.mark.parametrize("attention", ["sdpa", "eager"])


def masked_lm_of(family):
    """For RoBERTa without random tokens: one could be the padding id, at which its own class would miscount positions."""
    return MaskedLM(masked=0.9, random=0.0) if family == "roberta" else MaskedLM()


@ATTENTION
@pytest.mark.parametrize("family", ["bert", "roberta"])
class TestMaskedLM:
    def test_padded(self, family, attention):
        pair = Pair(MODELS[family], masked_lm_of(family), attention)
        batch = pair.collate(take(padded(pair.objective, LENGTH), ALL))
        assert batch.inputs["lengths"].min() < batch.inputs["lengths"].max() and batch.counts["targets"] > 15
        theirs = pair.their_loss(input_ids=batch.inputs["input_ids"], attention_mask=mask_of(batch), labels=whole_labels(batch))
        assert pair.loss(batch) == pytest.approx(theirs, rel=1e-6)

    def test_packed(self, family, attention):
        """Each document, or what of it is in a row, alone: transformers' masked models know no other way to keep them apart."""
        pair = Pair(MODELS[family], masked_lm_of(family), attention)
        samples = packed(pair.objective, LENGTH)
        taken = take(samples, np.arange(len(samples)))
        batch, labels, theirs = pair.collate(taken), whole_labels(pair.collate(taken)), []
        for row, begin, end in pieces(taken.rows["text"]):
            wanted = labels[row : row + 1, begin:end]
            if count := int((wanted != IGNORE).sum()):
                theirs.append((pair.their_loss(input_ids=batch.inputs["input_ids"][row : row + 1, begin:end], labels=wanted), count))
        assert taken.rows["text"].filled[-1] < LENGTH and len(theirs) > len(samples)
        assert sum(count for _, count in theirs) == batch.counts["targets"]
        mean = sum(loss * count for loss, count in theirs) / batch.counts["targets"]
        assert pair.loss(batch) == pytest.approx(mean, rel=1e-6)


@ATTENTION
@pytest.mark.parametrize("objective", [Seq2Seq(), SpanCorruption()], ids=["seq2seq", "span_corruption"])
@pytest.mark.parametrize("family", SEQ2SEQ)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_encoder_decoders(family, objective, attention, tmp_path):
    """From -100-padded labels alone: what the decoder sees is for transformers to derive."""
    pair = Pair(model_of(family, tmp_path), objective, attention)
    batch = pair.collate(take(padded(objective, LENGTH, 24), ALL))
    assert batch.inputs["lengths"].min() < batch.inputs["lengths"].max() and (batch.labels == IGNORE).any()
    theirs = pair.their_loss(input_ids=batch.inputs["input_ids"], attention_mask=mask_of(batch), labels=batch.labels)
    assert pair.loss(batch) == pytest.approx(theirs, rel=1e-6)


def test_a_bias_behind_barts_head_counts():
    pair = Pair(MODELS["bart"], Seq2Seq())
    batch = pair.collate(take(padded(Seq2Seq(), LENGTH), ALL))
    before = pair.loss(batch)
    bias = torch.randn(1, VOCABULARY.size, generator=torch.Generator().manual_seed(3)) * 2
    for model in (pair.stock, pair.scorer.model):
        model.final_logits_bias.copy_(bias)
    theirs = pair.their_loss(input_ids=batch.inputs["input_ids"], attention_mask=mask_of(batch), labels=batch.labels)
    assert pair.loss(batch) == pytest.approx(theirs, rel=1e-6) and abs(theirs - before) > 0.1
    assert torch.equal(pair.scorer.model.final_logits_bias, bias), "it is there again for whoever calls the model next"


@ATTENTION
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_causal_lm(family, attention):
    """One document per row and one token more, so that transformers' own shift has the same targets."""
    pair = Pair(MODELS[family], CausalLM(), attention)
    taken = take(padded(CausalLM(), LENGTH - 1), ALL)
    tokens, real = (torch.from_numpy(array) for array in (taken.rows["text"].tokens, taken.rows["text"].real))
    theirs = pair.their_loss(input_ids=tokens, attention_mask=real.long(), labels=tokens.masked_fill(~real, IGNORE))
    assert pair.loss(pair.collate(taken)) == pytest.approx(theirs, rel=1e-6)


@ATTENTION
@pytest.mark.parametrize("kind", ["single_label", "multi_label", "regression"])
@pytest.mark.parametrize("family", ["bert", "roberta", "llama", "gpt2"])
def test_classification(family, kind, attention):
    objective = Classification(kind)
    names = None if kind == "regression" else ("bad", "good", "ugly")
    pair = Pair(MODELS[family], objective, attention, labels=names)
    batch = pair.collate(take(padded(objective, LENGTH), ALL))
    assert pair.config.num_labels == (1 if kind == "regression" else CLASSES)
    theirs = pair.their_loss(input_ids=batch.inputs["input_ids"], attention_mask=mask_of(batch), labels=batch.labels)
    assert pair.loss(batch) == pytest.approx(theirs, rel=1e-6)
