"""The runner that takes one micro-batch after another through forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from trainer.model.attention import drop_plain
from trainer.model.weights import named_seed
from trainer.parallel.dropout import generators, may_drop
from trainer.parallel.parallelize import Parallelized
from trainer.protocols import Objective
from trainer.types import Batch, LossTerms, Scores, Term


class Loop:
    """Accumulates a step's gradient over its micro-batches.

    Args:
        parts: the parallelized model.
        objective: what is learned.
        device: this rank's.
        data_rank, data_size: this rank's place among those that see different samples.
        seed: of dropout.
    """

    def __init__(self, parts: Parallelized, objective: Objective, device: torch.device, data_rank: int, data_size: int, seed: int):
        self._parts = parts
        self._objective = objective
        self._device = device
        self._data_rank = data_rank
        self._data_size = data_size
        self._seed = seed
        self._drops = may_drop(parts.model)
        self._must_rehearse = parts.rehearses

    def run(self, step: int, micro_batches: list[Batch], counts: dict[str, Tensor]) -> LossTerms:
        """Adds the gradient of each term / its global count to every parameter.

        Returns:
            This rank's terms, summed over its micro-batches.
        """
        if self._must_rehearse:
            self._rehearse(micro_batches[0])
        # Ranks' gradients are averaged, but a sum over ranks is wanted: hence times the number of data ranks.
        shares = {key: self._data_size / count for key, count in counts.items()}
        totals: LossTerms = {}
        for number, batch in enumerate(micro_batches):
            with self._dropout(step, number), self._parts.accumulating(number == len(micro_batches) - 1):
                terms = self.terms(batch, self._parts.trained)
                learned = [term for term in terms.values() if term.sum.requires_grad]
                self._parts.backward([term.sum for term in learned], [term.weight * shares[term.count_key] for term in learned])
            for name, term in terms.items():
                so_far = term.sum.detach() + totals[name].sum if name in totals else term.sum.detach()
                totals[name] = Term(so_far, term.count_key, term.weight)
        return totals

    def _rehearse(self, batch: Batch) -> None:
        """One backward that does not count, at the beginning of every session.

        DDP puts gradients into other buckets after its first backward, and what is added up where decides the last bit on three and more
        ranks: without this, the first step of a resumed run would differ from the same step of a run that was not interrupted. So it
        would if the gradients were dropped here: those of the first step would then be divided on their way into the buckets, not there.
        """
        self._must_rehearse = False
        with self._dropout(0, 0):
            terms = self.terms(batch, self._parts.trained)
            self._parts.backward([term.sum for term in terms.values() if term.sum.requires_grad])
        self._parts.optimizer.zero_grad(set_to_none=False)

    def terms(self, batch: Batch, scorer: torch.nn.Module) -> LossTerms:
        """The objective's terms of one micro-batch, as training needs them."""
        sent = self._send(batch)
        return self._objective.loss(self._parts.scorer.scores(scorer(sent.inputs, sent.labels, sent.places)), sent)

    def judged(self, batch: Batch) -> tuple[LossTerms, Scores]:
        """The objective's terms of one micro-batch, as evaluation wants them, and what they were made of."""
        sent = self._send(batch)
        scores = self._parts.scorer.score(sent.inputs, sent.labels, sent.places)
        return self._objective.loss(scores, sent), scores

    def _send(self, batch: Batch) -> Batch:
        """The micro-batch on the device, without what says nothing."""
        inputs = {name: tensor.to(self._device, non_blocking=True) for name, tensor in drop_plain(batch.inputs).items()}
        places = None if batch.places is None else batch.places.to(self._device, non_blocking=True)
        return replace(batch, inputs=inputs, labels=batch.labels.to(self._device, non_blocking=True), places=places)

    @contextmanager
    def _dropout(self, step: int, number: int) -> Iterator[None]:
        """Dropout draws from (seed, step, data rank, micro-batch): nothing about it needs saving, and a rerun step repeats it.

        It can only draw from the global generators, which are not ours: they are put back.
        """
        if not self._drops:
            yield
            return
        drawn_from = generators(self._device)
        states = [generator.get_state() for generator in drawn_from]
        for generator in drawn_from:
            generator.manual_seed(named_seed(self._seed, "dropout", step, self._data_rank, number))
        try:
            yield
        finally:
            for generator, state in zip(drawn_from, states, strict=True):
                generator.set_state(state)
