"""Classification and regression: labels, losses and what they are judged by, against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from tests.unit.objective.corpora import context, padded, take
from trainer.objective.classification import LABELS, Classification
from trainer.types import Outputs, Scores

KINDS = tuple(LABELS)


def batch_of(kind, ids):
    objective = Classification(kind)
    taken = take(padded(objective, 32), ids)
    return objective, taken, objective.collate(taken, context())


@pytest.mark.parametrize("kind", KINDS)
def test_labels_go_with_their_texts_and_copies_have_none(kind):
    objective, taken, batch = batch_of(kind, [4, -1, 0])
    assert torch.equal(batch.labels[[0, 2]], torch.from_numpy(taken.labels)[[0, 2]])
    assert batch.labels[1].isnan().all() if kind != "single_label" else batch.labels[1] == -100
    assert batch.counts == {"targets": 2 * (3 if kind == "multi_label" else 1)} and batch.ids.tolist() == [4, -1, 0]
    assert batch.inputs["lengths"].tolist() == taken.rows["text"].filled.tolist()
    assert np.array_equal(taken.labels, take(padded(objective, 32), [4, -1, 0]).labels), "what is handed in is not written to"


def by_hand(kind, logits, labels):
    """The summed loss of each text, written out."""
    if kind == "single_label":
        return sum(math.log(sum(math.exp(x) for x in row)) - row[label] for row, label in zip(logits, labels, strict=True))
    if kind == "regression":
        return sum((row[0] - number) ** 2 for row, number in zip(logits, labels, strict=True))
    return sum(
        math.log(1 + math.exp(-x if wanted else x))
        for row, each in zip(logits, labels, strict=True)
        for x, wanted in zip(row, each, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_sum_over_texts_and_a_copy_adds_nothing(kind):
    objective, _, batch = batch_of(kind, [4, -1, 0, 7])
    logits = torch.randn(4, 1 if kind == "regression" else 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (term,) = objective.loss(Scores(logits=logits), batch).values()
    real = [0, 2, 3]
    assert term.sum.item() == pytest.approx(by_hand(kind, logits[real].tolist(), batch.labels[real].tolist()), rel=1e-6)
    term.sum.backward()
    assert (logits.grad[1] == 0).all() and (logits.grad[real] != 0).all(), "a copy has no gradient, not even NaN"


LOGITS = torch.tensor([[2.0, 0.1, -1.0], [0.3, 0.2, 0.1], [-1.0, 3.0, 0.0], [0.5, 0.4, 0.6], [1.0, -2.0, 0.5]])


def f1(hits, guessed, wanted):
    return 2 * hits / (guessed + wanted)


def test_single_label_by_hand():
    """Guesses 0 0 1 2 0; truth 0 1 1 2 2."""
    told = Classification().metrics({"nll": 0.5}, Outputs(logits=LOGITS, labels=torch.tensor([0, 1, 1, 2, 2])))
    assert told == {
        "loss": 0.5,
        "accuracy": pytest.approx(3 / 5),
        "f1_macro": pytest.approx((f1(1, 3, 1) + f1(1, 1, 2) + f1(1, 1, 2)) / 3),
    }


def test_multi_label_by_hand():
    """Guesses where a logit is above 0: 110 111 010 111 101."""
    truth = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0]]).float()
    told = Classification("multi_label").metrics({"nll": 0.5}, Outputs(logits=LOGITS, labels=truth))
    assert told == {
        "loss": 0.5,
        "exact_match": pytest.approx(2 / 5),
        "f1_micro": pytest.approx(f1(8, 11, 8)),
        "f1_macro": pytest.approx((f1(3, 4, 3) + f1(3, 4, 3) + f1(2, 3, 2)) / 3),
    }


def test_regression_by_hand():
    truth = torch.tensor([1.0, 0.0, -2.0, 1.5, 1.25])
    guess = LOGITS[:, 0]
    told = Classification("regression").metrics({"squared_error": 0.5}, Outputs(logits=LOGITS[:, :1], labels=truth))
    assert told["loss"] == 0.5
    assert told["mean_absolute_error"] == pytest.approx((guess - truth).abs().mean().item())
    assert told["pearson"] == pytest.approx(np.corrcoef(guess, truth)[0, 1], abs=1e-6)
    ranks = [np.argsort(np.argsort(values)) for values in (guess.numpy(), truth.numpy())]
    assert told["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-6)


def test_of_one_number_no_correlation_is_told():
    told = Classification("regression").metrics({"squared_error": 4.0}, Outputs(logits=torch.tensor([[1.0]]), labels=torch.tensor([3.0])))
    assert told == {"loss": 4.0, "mean_absolute_error": 2.0}
