"""The output head, swapped in place by class: given labels, it returns per-token negative log-likelihood instead of logits.

Module names, ``generate`` and the sharding root stay as they are. Full logits then exist only inside the head, so that a chunked or
vocabulary-parallel form can take this one's place without anybody else noticing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.attention import attends_fully, told_of_packing
from trainer.types import IGNORE


class DenseHead(nn.Linear):
    """A linear head over the whole vocabulary."""

    labels: Tensor | None

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits (B, L, V); or, inside ``scoring``, negative log-likelihoods (B, L) in fp32, 0 where the label is -100."""
        logits = super().forward(hidden)
        if self.labels is None:
            return logits
        nll = F.cross_entropy(logits.flatten(0, -2).float(), self.labels.flatten(), ignore_index=IGNORE, reduction="none")
        return nll.view(self.labels.shape).clone()  # a copy, not a view: FSDP hooks its backward onto the model's output


def swap_head(model: nn.Module, path: str) -> DenseHead:
    """Makes the linear layer at ``path`` a ``DenseHead``, keeping its parameters and its name."""
    head = model.get_submodule(path)
    assert type(head) is nn.Linear, f"the head {path} is a {type(head).__name__}, not a plain Linear"
    head.__class__ = DenseHead
    head.labels = None  # type: ignore[assignment]
    return head  # type: ignore[return-value]


@contextmanager
def scoring(head: DenseHead, labels: Tensor) -> Iterator[None]:
    """While inside, ``head`` returns the negative log-likelihood of ``labels`` (B, L)."""
    head.labels = labels
    try:
        yield
    finally:
        head.labels = None


class Scorer(nn.Module):
    """A transformers model and its head as one call: inputs and labels in, per-token negative log-likelihood out.

    Args:
        model: the transformers model.
        head: its swapped head.
        compute_dtype: when given, parameters are cast to it for the call, and gradients come back to the fp32 parameters.
            FSDP casts by itself and leaves it None.
    """

    def __init__(self, model: nn.Module, head: DenseHead, compute_dtype: torch.dtype | None = None):
        super().__init__()
        self.model = model
        self._head = [head]  # in a list: it is registered inside the model already
        self._compute_dtype = compute_dtype
        self._told = attends_fully(model.config)

    def forward(self, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Negative log-likelihoods (B, L) in fp32.

        Args:
            inputs: of the model; with ``position_ids`` only where rows hold more than one document.
            labels: int64 (B, L), -100 where there is no target.
        """
        telling = told_of_packing(self.model.config, inputs) if self._told else nullcontext(inputs)
        with scoring(self._head[0], labels), telling as told:
            if self._compute_dtype is None:
                return self.model(**told, use_cache=False).logits
            cast = {name: parameter.to(self._compute_dtype) for name, parameter in self.model.named_parameters()}
            return torch.func.functional_call(self.model, cast, (), {**told, "use_cache": False}).logits
