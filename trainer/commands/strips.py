"""What a batch says of each of its samples: which tokens are read, and which of them are predicted, hidden or replaced.

All of it is derived from the batch, so that an objective needs to know nothing about being shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from trainer.types import IGNORE, Batch, Samples


class Role(Enum):
    """What becomes of a token."""

    READ = "read, and not predicted by itself"
    NEXT = "predicted from what stands before it"
    NO_TARGET = "read, but not predicted, where its neighbours are"
    HIDDEN = "the mask token, and another is predicted there"
    REPLACED = "a wrong token, and another is predicted there"
    KEPT = "left as it is, and predicted all the same"


@dataclass(frozen=True)
class Strip:
    """One row of tokens in reading order.

    Attributes:
        title: what the model does with it; empty where there is but one.
        seen: int64 (n,), ids as they reach the model; fill is left out.
        truth: int64 (n,), the ids without masks and replacements.
        roles: of each token.
        starts: bool (n,), where another document begins, of which the one before sees nothing.
        read: how many tokens the model reads; the last of ``seen`` may be one that it only predicts.
        slots: how long the row is with its fill.
    """

    title: str
    seen: np.ndarray
    truth: np.ndarray
    roles: tuple[Role, ...]
    starts: np.ndarray
    read: int
    slots: int

    def runs(self, kinds: np.ndarray) -> list[tuple[int, int]]:
        """The longest stretches (begin, end) of one role and one of ``kinds`` (n,) in which no document begins."""
        roles = np.array([list(Role).index(role) for role in self.roles], np.int64)
        changes = (np.diff(roles) != 0) | (np.diff(kinds) != 0) | self.starts[1:]
        ends = [*(np.flatnonzero(changes) + 1).tolist(), len(self.roles)]
        return [pair for pair in zip([0, *ends[:-1]], ends, strict=True) if pair[0] < pair[1]]


def strips(batch: Batch, samples: Samples, row: int, mask: int | None) -> list[Strip]:
    """The strips of one sample.

    Args:
        batch: what the objective made of ``samples``.
        samples: with the number of tokens of each row, where the batch does not say it.
        row: which of them.
        mask: the id that hides a token.
    """
    inputs = {name: value.numpy()[row] for name, value in batch.inputs.items()}
    ids, labels = inputs["input_ids"], _labels(batch, row)
    real = int(inputs["lengths"]) if "lengths" in inputs else min(int(next(iter(samples.rows.values())).filled[row]), ids.size)
    positions = inputs.get("position_ids", np.arange(ids.size))
    starts = (positions == 0) & (np.arange(ids.size) > 0)
    if "decoder_input_ids" in inputs:
        assert labels is not None, "what a decoder reads is what it should have written"
        return [_read("reads", ids, real, starts), _continued("writes", inputs["decoder_input_ids"], labels, None, starts[:0])]
    if labels is None:
        return [_read("reads", ids, real, starts)]
    if batch.places is None and _is_next(ids, labels):
        return [_continued("", ids, labels, real, starts)]
    return [_in_place(ids, labels, real, starts, mask)]


def label_of(batch: Batch, row: int, names: tuple[str, ...] | None) -> str | None:
    """The label of a whole text in words; None where labels belong to tokens.

    Args:
        batch: with one label, or one row of zeros and ones, per sample.
        row: which sample.
        names: of the classes; None: labels are numbers.
    """
    if not _per_sample(batch):
        return None
    label = batch.labels[row].numpy()
    if names is None:
        return f"{label.item():g}"
    if label.ndim == 0:
        return names[int(label)]
    return ", ".join(name for name, has in zip(names, label, strict=True) if has) or "(none)"


def _per_sample(batch: Batch) -> bool:
    return batch.places is None and (batch.labels.is_floating_point() or batch.labels.ndim == 1)


def _labels(batch: Batch, row: int) -> np.ndarray | None:
    """The labels of one row's outputs, -100 where there is no target; None where the whole text has one."""
    if _per_sample(batch):
        return None
    if batch.places is None:
        return batch.labels[row].numpy()
    width = batch.inputs["input_ids"].shape[1]
    places = batch.places.numpy()
    here = places // width == row
    labels = np.full(width, IGNORE, np.int64)
    labels[places[here] % width] = batch.labels.numpy()[here]
    return labels


def _is_next(ids: np.ndarray, labels: np.ndarray) -> bool:
    """Whether each output predicts the token after its own."""
    targets = labels[:-1] != IGNORE
    return bool((labels[:-1] == ids[1:])[targets].all())


def _read(title: str, ids: np.ndarray, real: int, starts: np.ndarray) -> Strip:
    return Strip(title, ids[:real], ids[:real], (Role.READ,) * real, starts[:real], real, ids.size)


def _continued(title: str, ids: np.ndarray, labels: np.ndarray, real: int | None, starts: np.ndarray) -> Strip:
    """Tokens that are each predicted from those before, up to the one that the last slot predicts, which nobody reads."""
    last = int(np.flatnonzero(labels != IGNORE).max(initial=-1))
    real = max(last + 1, 1) if real is None else real
    ahead = labels[real - 1 : real] if last == real - 1 else labels[:0]
    seen = np.concatenate([ids[:real], ahead])
    predicted = [False, *(labels[: seen.size - 1] != IGNORE)]
    begins = np.zeros(seen.size, bool)
    begins[: min(starts.size, real)] = starts[:real]
    return Strip(title, seen, seen, tuple(Role.NEXT if is_target else Role.NO_TARGET for is_target in predicted), begins, real, ids.size)


def _in_place(ids: np.ndarray, labels: np.ndarray, real: int, starts: np.ndarray, mask: int | None) -> Strip:
    """Tokens some of which are to be named where they stand."""
    truth = np.where(labels == IGNORE, ids, labels)

    def role(place: int) -> Role:
        if labels[place] == IGNORE:
            return Role.READ
        if ids[place] == labels[place]:
            return Role.KEPT
        return Role.HIDDEN if ids[place] == mask else Role.REPLACED

    return Strip("", ids[:real], truth[:real], tuple(map(role, range(real))), starts[:real], real, ids.size)
