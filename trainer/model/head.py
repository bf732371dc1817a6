"""The output head, swapped in place by class: given labels, it returns per-token negative log-likelihood instead of logits.

Module names, ``generate`` and the sharding root stay as they are. Full logits then exist only inside the head, where nobody notices whether they
exist at all: in chunks (trainer.model.chunked) or split over ranks (trainer.parallel.vocabulary) they do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.attention import Attending
from trainer.model.chunked import ChunkedLikelihood
from trainer.model.families import Family, Head
from trainer.types import IGNORE, Scores


@dataclass
class Asked:
    """What the head is asked in one forward.

    Attributes:
        labels: int64, of the shape of its outputs; -100 where there is no target.
        places: int64 (N,), the flat slots that it is to serve; ``labels`` are then (N,). None: all.
        bias: (1, V), added to the logits; None: nothing is.
        hits: becomes bool like ``labels``: whether the label is the likeliest. Left alone in training.
    """

    labels: Tensor
    places: Tensor | None = None
    bias: Tensor | None = None
    hits: Tensor | None = None


class DenseHead(nn.Linear):
    """A linear head over the whole vocabulary.

    Attributes:
        asked: what it is asked; None: logits.
        chunk: so many slots have logits at a time where it is asked; None: all.
    """

    asked: Asked | None
    chunk: int | None

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits (..., V); or, inside ``asking``, negative log-likelihoods (N,) of all slots in fp32, 0 where the label is -100."""
        asked = self.asked
        if asked is None:
            return super().forward(hidden)
        labels = asked.labels.flatten()
        hits: list[Tensor] = []
        look = None if self.training else lambda logits, labels: hits.append(logits.argmax(-1) == labels)
        if self.chunk is None:
            logits = super().forward(hidden)
            flat = (logits if asked.bias is None else logits + asked.bias).flatten(0, -2).float()
            if look:
                look(flat, labels)
            nll = F.cross_entropy(flat, labels, ignore_index=IGNORE, reduction="none")
        else:
            nll = ChunkedLikelihood.apply(hidden.flatten(0, -2), self.weight, self.bias, asked.bias, labels, self.chunk, 0, None, look)
        if look:
            keep_hits(asked, hits)
        return nll  # not in the labels' shape, which would be a view: FSDP hooks its backward onto the model's output


def keep_hits(asked: Asked, parts: list[Tensor]) -> None:
    """Joins parts (N,) of the answer's hits; there are none where there is no slot to look at."""
    none = asked.labels.new_empty(0, dtype=torch.bool)
    asked.hits = torch.cat([none, *parts]).view(asked.labels.shape)


def swap_head(model: nn.Module, head: Head, chunk: int | None = None) -> DenseHead | None:
    """Makes the linear layer of ``head`` a ``DenseHead``, keeping its parameters and its name; None where logits are taken as they are."""
    if head.linear is None:
        return None
    linear = model.get_submodule(head.linear)
    assert type(linear) is nn.Linear, f"the head {head.linear} is a {type(linear).__name__}, not a plain Linear"
    linear.__class__ = DenseHead
    linear.asked, linear.chunk = None, chunk  # type: ignore[assignment]

    def only_targets(block: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """What the head does for slots without a target is never needed: they do not reach it."""
        if linear.asked is None or linear.asked.places is None:  # type: ignore[union-attr]
            return arguments
        hidden, *others = arguments
        return hidden.flatten(0, 1)[linear.asked.places], *others  # type: ignore[union-attr]

    model.get_submodule(head.block or head.linear).register_forward_pre_hook(only_targets)
    return linear  # type: ignore[return-value]


@contextmanager
def asking(head: DenseHead, asked: Asked) -> Iterator[None]:
    """While inside, ``head`` answers ``asked``."""
    head.asked = asked
    try:
        yield
    finally:
        head.asked = None


class Scorer(nn.Module):
    """A transformers model and its head as one call: inputs and labels in, per-token negative log-likelihood out.

    Args:
        model: the transformers model.
        head: its swapped head; None: logits come out.
        family: of the model.
        bias: dotted path of the buffer that the model adds after its head.
        compute_dtype: when given, parameters are cast to it for the call, and gradients come back to the fp32 parameters.
            FSDP casts by itself and leaves it None.
        wrapped: what to call in place of ``model``, with the same arguments; None: ``model`` itself.
    """

    def __init__(
        self,
        model: nn.Module,
        head: DenseHead | None,
        family: Family,
        bias: str | None = None,
        compute_dtype: torch.dtype | None = None,
        wrapped: nn.Module | None = None,
    ):
        super().__init__()
        self.model = model
        # In lists: the head is registered inside the model already, and the model inside of what wraps it.
        self._head = [head]
        self._called = [model if wrapped is None else wrapped]
        self._bias = bias
        self._attending = Attending(model.config, family, compute_dtype or torch.float32)
        self._compute_dtype = compute_dtype

    def forward(self, inputs: dict[str, Tensor], labels: Tensor, places: Tensor | None = None) -> Tensor:
        """Negative log-likelihoods (N,) of all ``labels`` in fp32; logits (B, ...) where there is no head to ask.

        Args:
            inputs: of the model; with ``position_ids`` only where rows hold more than one document, ``lengths`` only where rows are padded.
            labels: int64, aligned with the outputs, -100 where there is no target.
            places: int64 (N,), the only flat slots to score; ``labels`` are then (N,).
        """
        return self.call(inputs, Asked(labels, places)).logits

    def score(self, inputs: dict[str, Tensor], labels: Tensor, places: Tensor | None = None) -> Scores:
        """The same with everything that evaluation wants to know beside; the model is in evaluation mode."""
        asked = Asked(labels, places)
        return self.scores(self.call(inputs, asked).logits, labels, asked.hits)

    def scores(self, outputs: Tensor, labels: Tensor, hits: Tensor | None = None) -> Scores:
        """What an objective sees of the outputs of ``forward``, given the same ``labels``."""
        return Scores(logits=outputs) if self._head[0] is None else Scores(nll=outputs.view(labels.shape), hits=hits)

    def call(self, inputs: dict[str, Tensor], asked: Asked | None = None) -> Any:
        """What the model itself gives back; with a head, likelihoods of what is asked are in the place of its logits."""
        with self._attending.to(inputs) as told, self._asking(asked):
            if self._compute_dtype is None:
                return self._called[0](**told, use_cache=False)
            cast = {name: parameter.to(self._compute_dtype) for name, parameter in self.model.named_parameters()}
            return torch.func.functional_call(self.model, cast, (), {**told, "use_cache": False})

    def _asking(self, asked: Asked | None) -> AbstractContextManager[None]:
        """While inside, the head answers what is asked, if there are both."""
        head = self._head[0]
        if asked is None or head is None:
            return nullcontext()
        return asking(head, asked) if self._bias is None else _asking_before(head, asked, self.model, self._bias)


@contextmanager
def _asking_before(head: DenseHead, asked: Asked, model: nn.Module, path: str) -> Iterator[None]:
    """The head answers with the buffer ``path``, which the model would add to its output; meanwhile the model adds zero to what comes instead."""
    owner, _, name = path.rpartition(".")
    buffers = model.get_submodule(owner)._buffers
    asked.bias = bias = buffers[name]
    assert bias is not None
    buffers[name] = bias.new_zeros(1)
    try:
        with asking(head, asked):
            yield
    finally:
        buffers[name] = bias
