"""The runner that takes one micro-batch after another through forward and backward."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from trainer.model.weights import named_seed
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

    def run(self, step: int, micro_batches: list[Batch], counts: dict[str, Tensor]) -> LossTerms:
        """Adds the gradient of each term / its global count to every parameter.

        Returns:
            This rank's terms, summed over its micro-batches.
        """
        sums: dict[str, list[Tensor]] = defaultdict(list)
        terms: LossTerms = {}
        for number, batch in enumerate(micro_batches):
            self._seed_dropout(step, number)
            with self._parts.accumulating(number == len(micro_batches) - 1):
                terms = self.terms(batch, self._parts.trained)
                # Ranks' gradients are averaged, but a sum over ranks is wanted: hence times the number of data ranks.
                loss = sum(term.weight * self._data_size * term.sum / counts[term.count_key] for term in terms.values())
                assert isinstance(loss, Tensor)
                loss.backward()
            for name, term in terms.items():
                sums[name].append(term.sum.detach())
        return {name: Term(torch.stack(sums[name]).sum(), term.count_key, term.weight) for name, term in terms.items()}

    def terms(self, batch: Batch, scorer: torch.nn.Module) -> LossTerms:
        """The objective's terms of one micro-batch."""
        inputs = {name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.inputs.items()}
        labels = batch.labels.to(self._device, non_blocking=True)
        return self._objective.loss(Scores(nll=scorer(inputs, labels)), Batch(inputs, labels, batch.counts))

    def _seed_dropout(self, step: int, number: int) -> None:
        """Dropout draws from (seed, step, data rank, micro-batch): nothing about it needs saving, and a rerun step repeats it."""
        seed = named_seed(self._seed, "dropout", step, self._data_rank, number)
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            torch.cuda.default_generators[self._device.index].manual_seed(seed)
