"""Protocol Objective: a loss is a sum over samples, its counts are right, its labels stand where the outputs are; and the gate that minds it."""

import json
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from tests.unit.objective.corpora import CLASSES, VOCABULARY, context, packed, padded, samples_for, take
from tests.unit.objective.pairs import Pair, mask_of, model_of
from trainer import config
from trainer.objective.additive import objective_problems
from trainer.objective.causal_lm import CausalLM
from trainer.objective.classification import Classification
from trainer.objective.masked_lm import MaskedLM
from trainer.objective.seq2seq import Seq2Seq
from trainer.objective.span_corruption import SpanCorruption
from trainer.testing import last_wins, run_ranks
from trainer.types import IGNORE, Scores, Term

OBJECTIVES = {
    "CausalLM": CausalLM(),
    "MaskedLM": MaskedLM(),
    "MaskedLM, whole words": MaskedLM(whole_word=True),
    "SpanCorruption": SpanCorruption(),
    "Seq2Seq": Seq2Seq(),
    "Classification": Classification(),
    "Classification, multi-label": Classification("multi_label"),
    "Classification, regression": Classification("regression"),
}
RANDOM = (MaskedLM, SpanCorruption)
FAMILY = {"causal_lm": "llama", "masked_lm": "roberta", "seq2seq": "bart", "classification": "bert"}


def num_outputs(objective):
    return 1 if objective == Classification("regression") else CLASSES


def problems(objective, samples=None):
    return objective_problems(objective, samples or samples_for(objective), context(), num_outputs(objective))


def is_target(batch):
    """Which labels are targets; one number, or a row of them, for each sample or slot."""
    return ~batch.labels.isnan() if batch.labels.is_floating_point() else batch.labels != IGNORE


def scores_of(objective, batches):
    """Made-up scores for batches: of each sample or slot its own, whichever batch it is in."""
    if objective.task == "classification":
        return [Scores(logits=torch.stack([torch.sin(torch.arange(num_outputs(objective)) + id) for id in batch.ids])) for batch in batches]
    generator = torch.Generator().manual_seed(0)
    whole, *singles = batches
    nll = (torch.rand(whole.labels.shape, generator=generator) * 9).masked_fill(whole.labels == IGNORE, 0.0)
    if whole.places is None:
        parts = [nll[row : row + 1] for row in range(len(singles))]
    else:
        parts = nll.split([len(single.labels) for single in singles])
    return [Scores(nll=part, hits=part < 3) for part in (nll, *parts)]


def test_every_objective_is_tried_here():
    assert {type(objective) for objective in OBJECTIVES.values()} == set(config.GROUPS["objective"].values())


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
class TestEveryObjective:
    def test_passes_the_gate(self, objective):
        assert problems(objective) == []
        assert problems(objective, padded(objective, 24)) == []

    def test_terms_and_counts_of_a_batch_are_the_sums_of_its_samples(self, objective):
        samples = samples_for(objective)
        ids = np.array([3, 0, len(samples) - 1, -1, 1])
        widths = samples.widths(ids)
        batches = [objective.collate(take(samples, part, 2, widths), context()) for part in (ids, *ids[:, None])]
        whole, *parts = [objective.loss(scores, batch) for scores, batch in zip(scores_of(objective, batches), batches, strict=True)]
        for name, term in whole.items():
            assert term.sum.ndim == 0 and term.count_key in batches[0].counts
            assert term.sum.item() == pytest.approx(sum(part[name].sum.item() for part in parts), rel=1e-6)
        for key, count in batches[0].counts.items():
            assert count == sum(batch.counts[key] for batch in batches[1:])
        assert batches[0].counts["targets"] == int(is_target(batches[0]).sum()) > 0
        assert all(not part.sum.item() for part in parts[3].values()), "a copy adds nothing"

    def test_a_filler_has_inputs_but_no_targets(self, objective):
        samples = samples_for(objective)
        filler, real = (objective.collate(take(samples, [id]), context()) for id in (-1, 0))
        assert not is_target(filler).any() and not any(filler.counts.values()) and real.counts["targets"] > 0
        assert {name: tensor.shape for name, tensor in filler.inputs.items()} == {
            name: tensor.shape for name, tensor in real.inputs.items()
        }

    def test_tensors_are_what_models_and_pipes_take(self, objective):
        batch = objective.collate(take(samples_for(objective), [0, 1, 2]), context())
        assert all(tensor.is_contiguous() and len(tensor) == 3 and tensor.dtype == torch.int64 for tensor in batch.inputs.values())
        assert batch.labels.is_contiguous() and batch.labels.dtype == (torch.float32 if batch.labels.is_floating_point() else torch.int64)
        if batch.places is None:
            assert len(batch.labels) == 3
        else:
            assert batch.places.shape == batch.labels.shape and batch.places.dtype == torch.int64
            assert (batch.places.diff() > 0).all() and batch.places.max() < batch.inputs["input_ids"].numel()
        for name in ("input_ids", "decoder_input_ids"):
            assert name not in batch.inputs or 0 <= batch.inputs[name].min() <= batch.inputs[name].max() < VOCABULARY.size

    def test_only_what_is_drawn_at_random_changes_from_epoch_to_epoch(self, objective):
        samples = samples_for(objective)
        first, again, second = (objective.collate(take(samples, [0, 1, 2], epoch), context()).inputs for epoch in (0, 0, 1))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert all(torch.equal(first[name], second[name]) for name in first) != isinstance(objective, RANDOM)

    def test_a_micro_batch_of_fillers_has_a_loss_and_gradients_of_zero(self, objective, tmp_path):
        """What a rank without a sample runs: its gradients are added to the others'."""
        labels = None if objective.task != "classification" else ("a", "b", "c")[: num_outputs(objective)]
        pair = Pair(model_of(FAMILY[objective.task], tmp_path), objective, labels=labels)
        term = pair.term(pair.collate(take(samples_for(objective), [-1, -1])))
        assert term.sum.item() == 0
        term.sum.backward()
        gradients = [parameter.grad for parameter in pair.scorer.model.parameters()]
        assert all(gradient is not None and (gradient == 0).all() for gradient in gradients)


def test_the_label_at_a_place_is_the_token_after_it():
    samples = packed(CausalLM(), 24)
    batch = CausalLM().collate(take(samples, np.arange(len(samples) - 1)), context())
    ids, positions, labels = batch.inputs["input_ids"], batch.inputs["position_ids"], batch.labels
    follows = positions[:, 1:] > 0  # the next slot goes on with the same document
    assert torch.equal(labels[:, :-1][follows], ids[:, 1:][follows]) and (labels[:, :-1][~follows] == IGNORE).all()
    assert (labels != IGNORE).sum() == batch.counts["targets"] and 0 < (~follows).sum() < follows.sum()


class TestHits:
    """What evaluation counts beside the loss."""

    def batch(self):
        return MaskedLM(probability=0.5).collate(take(packed(MaskedLM(), 24), [0, 1, 2]), context())

    def test_they_are_counted_and_not_learned(self):
        batch = self.batch()
        hits = torch.arange(len(batch.labels)) % 3 == 0
        term = MaskedLM().loss(Scores(nll=torch.zeros(len(hits)), hits=hits), batch)["hits"]
        assert (int(term.sum), term.count_key, term.weight) == (int(hits.sum()), "targets", 0.0)
        assert MaskedLM().loss(Scores(nll=torch.zeros(len(hits))), batch).keys() == {"nll"}

    def test_the_head_counts_the_likeliest(self, tmp_path):
        pair = Pair(model_of("bert", tmp_path), MaskedLM())
        batch = pair.collate(take(padded(MaskedLM(), 40), np.arange(15)))
        likeliest = pair.stock(input_ids=batch.inputs["input_ids"], attention_mask=mask_of(batch)).logits.argmax(-1).flatten()
        labels = torch.where(torch.arange(len(batch.labels)) % 2 == 0, likeliest[batch.places], batch.labels)
        hits = pair.scorer.score(batch.inputs, labels, batch.places).hits
        assert hits.dtype == torch.bool and torch.equal(hits, labels == likeliest[batch.places])
        assert len(labels) // 2 <= int(hits.sum()) < len(labels)


def test_the_head_at_target_places_is_the_head_everywhere(tmp_path):
    """Scores and gradients; and it is asked at these places only."""
    for family in ("bert", "roberta", "encoder-decoder"):
        pair = Pair(model_of(family, tmp_path), MaskedLM() if family != "encoder-decoder" else Seq2Seq())
        samples = padded(pair.objective, 40)
        batch = pair.collate(take(samples, np.arange(15)))
        if batch.places is None:
            labels, places = batch.labels, (batch.labels.flatten() != IGNORE).nonzero().flatten()
        else:
            labels, places = torch.full_like(batch.inputs["input_ids"], IGNORE), batch.places
            labels.view(-1)[places] = batch.labels
        seen = []
        pair.scorer._head[0].register_forward_hook(lambda module, given, out, seen=seen: seen.append(given[0].shape))
        found = []
        for asked in ((labels, None), (labels.flatten()[places], places)):
            pair.scorer.zero_grad()
            nll = pair.scorer(batch.inputs, *asked)
            nll.sum().backward()
            found.append((nll.detach(), [parameter.grad for parameter in pair.scorer.parameters() if parameter.grad is not None]))
        (everywhere, gradients), (there, same) = found
        assert seen == [(*labels.shape, 32), (len(places), 32)] and len(places) < labels.numel()
        assert torch.allclose(everywhere.flatten()[places], there, rtol=1e-6, atol=1e-6)
        assert everywhere.count_nonzero() == len(places)
        for one, other in zip(gradients, same, strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-4 * one.abs().max().item())


class MeanOfTokens(CausalLM):
    def loss(self, scores, batch):
        return {"nll": Term(scores.nll.sum() / max(1, batch.counts["targets"]), "targets")}


class MeanOfRows(CausalLM):
    def loss(self, scores, batch):
        return {"nll": Term(scores.nll.sum(-1).mean(), "targets")}


class Contrast(CausalLM):
    """Each sample's share depends on which others are beside it."""

    def loss(self, scores, batch):
        per_row = scores.nll.sum(-1)
        return {"nll": Term(scores.nll.sum(), "targets"), "contrast": Term((per_row - per_row.mean()).square().sum(), "targets")}


class CountsBatches(CausalLM):
    def collate(self, samples, context):
        batch = super().collate(samples, context)
        batch.counts["batches"] = 1
        return batch


class CountsNothing(CausalLM):
    def loss(self, scores, batch):
        return {"nll": Term(scores.nll.sum(), "tokens")}


class CountsOtherwise(CausalLM):
    def collate(self, samples, context):
        return replace(super().collate(samples, context), counts={"rows": len(samples.ids)})

    def loss(self, scores, batch):
        return {"nll": Term(scores.nll.sum(), "rows")}


class MeanOfHidden(MaskedLM):
    def loss(self, scores, batch):
        return {"nll": Term(scores.nll.mean(), "targets")}


class MeanOfTargets(Seq2Seq):
    def loss(self, scores, batch):
        return {"nll": Term(scores.nll.sum() / (batch.labels != IGNORE).sum(), "targets")}


class MeanOfTexts(Classification):
    def loss(self, scores, batch):
        (term,) = super().loss(scores, batch).values()
        return {"nll": Term(term.sum / len(batch.labels), "targets")}


class HidesByPlace(MaskedLM):
    """Draws for the place in the batch instead of for the sample."""

    def collate(self, samples, context):
        return super().collate(replace(samples, ids=np.arange(len(samples.ids))), context)


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (
            MeanOfTokens(),
            r"objective MeanOfTokens: term 'nll' is \S+ for 4 rows, but \S+ when they come apart\. It must be a sum over samples",
        ),
        (MeanOfRows(), r"objective MeanOfRows: term 'nll' is"),
        (Contrast(), r"objective Contrast: term 'contrast' is"),
        (CountsBatches(), r"objective CountsBatches: count 'batches' is 1 for 4 rows, but 2 when"),
        (CountsNothing(), r"objective CountsNothing: term 'nll' is divided by the count 'tokens', but collate counts only targets\."),
        (CountsOtherwise(), r"objective CountsOtherwise: collate counts rows, but no 'targets'"),
        (MeanOfHidden(), r"objective MeanOfHidden: term 'nll' is"),
        (MeanOfTargets(), r"objective MeanOfTargets: term 'nll' is"),
        *((MeanOfTexts(kind), r"objective MeanOfTexts: term 'nll' is") for kind in ("single_label", "multi_label", "regression")),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_what_is_no_sum_over_samples_is_refused(objective, said):
    (problem,) = problems(objective)
    assert re.search(said, problem), problem


def test_that_all_samples_look_alike_hides_nothing():
    """Documents as long as rows: without scores of its own, each sample would stand at the mean."""
    (problem,) = problems(Contrast(), packed(CausalLM(), 8, (8,) * 6))
    assert re.search(r"objective Contrast: term 'contrast' is", problem), problem


def test_draws_that_belong_to_the_batch_are_refused():
    told = problems(HidesByPlace())
    assert any(re.search(r"objective HidesByPlace: count 'targets' is \d+ for 4 rows, but \d+ when", problem) for problem in told), told


def test_a_corpus_of_one_row_will_do():
    samples = packed(CausalLM(), 8, (9,))
    assert len(samples) == 1
    assert problems(CausalLM(), samples) == [] and len(problems(MeanOfTokens(), samples)) == 1


@dataclass
class MeanPlugin(MeanOfTokens):
    """As a user would write and register it."""


@dataclass
class MeanClassifier(MeanOfTexts):
    """The same for texts with labels."""


def train_with_plugins(arguments):
    import trainer
    from trainer.testing import train_here

    trainer.register("objective", "mean_lm", MeanPlugin)
    trainer.register("objective", "mean_classifier", MeanClassifier)
    return train_here(arguments)


def test_the_front_door_refuses_a_mean_before_anything_is_begun(tiny, tmp_path):
    arguments = last_wins([*tiny, "objective=mean_lm", f"run.dir={tmp_path / 'run'}"])
    with pytest.raises(AssertionError, match=r"Refused: objective MeanPlugin: term 'nll' is .* never a mean"):
        run_ranks(train_with_plugins, 2, arguments)
    assert not (tmp_path / "run").exists()


def test_and_a_classifiers_too(tiny, tmp_path):
    lines = [
        {"text": f"def name_{number}(x): return {'good' if number % 3 else 'bad'} * {number}", "label": number % 3} for number in range(60)
    ]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    own = [argument for argument in tiny if not argument.startswith(("data.path", "data.document"))]
    data = ["data=jsonl", f"data.path={tmp_path / 'texts.jsonl'}", "data.validation_fraction=0.2", f"data.cache_dir={tmp_path / 'cache'}"]
    arguments = last_wins([*own, *data, "model=bert_tiny", "objective=mean_classifier", f"run.dir={tmp_path / 'run'}"])
    with pytest.raises(AssertionError, match=r"Refused: objective MeanClassifier: term 'nll' is .* never a mean"):
        run_ranks(train_with_plugins, 1, arguments)
    assert not (tmp_path / "run").exists()
