"""The runner that takes one micro-batch after another through forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.model.documents import as_mask, longest_document
from trainer.parallel.dropout import Draws
from trainer.parallel.parallelize import Parallelized
from trainer.protocols import EngineJob
from trainer.types import Batch, LossTerms, Scores, Term


class Loop:
    """Accumulates a step's gradient over its micro-batches.

    Args:
        parts: the parallelized model.
        job: what is learned, where, and the seed of dropout.
        data_rank, data_size: this rank's place among those that see different samples.
    """

    def __init__(self, parts: Parallelized, job: EngineJob, data_rank: int, data_size: int):
        self._parts = parts
        self._objective, self._device = job.objective, job.device
        self._data_size = data_size
        self._dropout = Draws(job.seed, data_rank, job.device, [parts.model])
        self._must_rehearse = parts.rehearses

    def run(self, step: int, micro_batches: list[Batch], counts: dict[str, Tensor]) -> LossTerms:
        """Adds the gradient of each term / its global count to every parameter.

        Returns:
            This rank's terms, summed over its micro-batches.
        """
        if self._must_rehearse:
            self._rehearse(micro_batches[0])
        shares = {key: count.reciprocal() for key, count in counts.items()}
        totals: LossTerms = {}
        for number, batch in enumerate(micro_batches):
            with self._dropout.at(step, number), self._parts.accumulating(number == len(micro_batches) - 1):
                terms = self.terms(batch, self._parts.trained)
                learned = [term for term in terms.values() if term.sum.requires_grad]
                # Ranks' gradients are averaged, but a sum over ranks is wanted: hence times the number of data ranks.
                slopes = [shares[term.count_key] * (term.weight * self._data_size) for term in learned]
                self._parts.backward([term.sum for term in learned], slopes)
            add(totals, terms)
        return totals

    def _rehearse(self, batch: Batch) -> None:
        """One backward that does not count, at the beginning of every session.

        DDP puts gradients into other buckets after its first backward, and what is added up where decides the last bit on three and more
        ranks: without this, the first step of a resumed run would differ from the same step of a run that was not interrupted. So it
        would if the gradients were dropped here: those of the first step would then be divided on their way into the buckets, not there.
        """
        self._must_rehearse = False
        with self._dropout.at(0, 0):
            terms = self.terms(batch, self._parts.trained)
            self._parts.backward([term.sum for term in terms.values() if term.sum.requires_grad])
        self._parts.optimizer.zero_grad(set_to_none=False)

    def terms(self, batch: Batch, scorer: torch.nn.Module) -> LossTerms:
        """The objective's terms of one micro-batch, as training needs them."""
        sent = send(batch, self._device)
        return self._objective.loss(self._parts.scorer.scores(scorer(sent.inputs, sent.labels, sent.places), sent.labels), sent)

    def bubble(self) -> None:
        """None: there is no pipeline."""

    def judged(self, batch: Batch) -> tuple[LossTerms, Scores]:
        """The objective's terms of one micro-batch, as evaluation wants them, and what they were made of."""
        sent = send(batch, self._device)
        scores = self._parts.scorer.score(sent.inputs, sent.labels, sent.places)
        return self._objective.loss(scores, sent), scores


def send(batch: Batch, device: torch.device) -> Batch:
    """The micro-batch on ``device``."""
    inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.inputs.items()}
    if "documents" in inputs:
        inputs["documents"] = as_mask(inputs["documents"], longest_document(batch.inputs["documents"]))
    places = None if batch.places is None else batch.places.to(device, non_blocking=True)
    return Batch(inputs, batch.labels.to(device, non_blocking=True), batch.counts, places, batch.ids)


def add(totals: LossTerms, terms: LossTerms) -> None:
    """Adds a micro-batch's terms to those of the ones before it."""
    for name, term in terms.items():
        so_far = term.sum.detach() + totals[name].sum if name in totals else term.sum.detach()
        totals[name] = Term(so_far, term.count_key, term.weight)
