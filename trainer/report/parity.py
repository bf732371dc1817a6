"""Whether runs are the same: step by step, at the full precision of ``metrics.jsonl``, on every line of it."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np

from trainer.report.folder import flat
from trainer.report.history import number, parse
from trainer.report.thinning import Thinned

SAME_LOSS = 1e-5
"""The contract Gradient: in fp32 losses of any two layouts are closer, relatively."""


@dataclass(frozen=True)
class Steps:
    """A run's training steps in full.

    Attributes:
        steps, losses: of each line.
        samples: a number made of each line's hash; 0 where there is none.
    """

    steps: np.ndarray
    losses: np.ndarray
    samples: np.ndarray


@dataclass(frozen=True)
class Parity:
    """One run beside the first.

    Attributes:
        common: steps that both have.
        largest: relative difference of losses, and the step of it; (0, None) where all are equal bit by bit.
        parts_at: the first step with another loss; None: there is none.
        exceeds_at: the first step that is more than ``SAME_LOSS`` apart.
        other_samples: steps that saw other samples, and the first of them; None where a file does not say.
        differences: over steps.
    """

    common: int
    largest: tuple[float, int | None]
    parts_at: int | None
    exceeds_at: int | None
    other_samples: tuple[int, int | None] | None
    differences: Thinned

    @property
    def verdict(self) -> str:
        """A sentence."""
        if not self.common:
            return "no step in common"
        if self.other_samples and self.other_samples[0]:
            return f"other samples from step {self.other_samples[1]:,} on"
        if self.parts_at is None:
            return "the same, bit by bit"
        return (
            f"the same within {self.largest[0]:.1e}"
            if self.exceeds_at is None
            else f"more than {SAME_LOSS:g} apart from step {self.exceeds_at:,} on"
        )


def read_steps(path: Path) -> Steps:
    """Reads the steps of a ``metrics.jsonl``; of a step that is there twice, the last.

    Raises:
        OSError: it cannot be read.
    """
    steps, losses, samples = array("q"), array("d"), array("q")
    with path.open("rb") as stream:
        for line in stream:
            record = parse(line) if line.endswith(b"\n") else None
            if record is not None and record["kind"] == "train":
                steps.append(record["step"])
                losses.append(number(record.get("loss")))
                samples.append(_number_of(record.get("samples")))
    found = np.array(steps, np.int64)
    _, last = np.unique(found[::-1], return_index=True)
    kept = found.size - 1 - last
    return Steps(found[kept], np.array(losses, float)[kept], np.array(samples, np.int64)[kept])


def compare(first: Steps, other: Steps) -> Parity:
    """One run beside another."""
    common, ours, theirs = np.intersect1d(first.steps, other.steps, assume_unique=True, return_indices=True)
    before, after = first.losses[ours], other.losses[theirs]
    equal = (before == after) | (np.isnan(before) & np.isnan(after))
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.where(equal, 0.0, np.abs(after - before) / np.abs(before))
    apart[np.isnan(apart)] = np.inf  # one of them is no number
    differences = Thinned(["difference"])
    for step, value in zip(common.tolist(), apart.tolist(), strict=True):
        differences.add(step, [value])
    worst = int(apart.argmax()) if common.size else 0
    known = (first.samples[ours] != 0) & (other.samples[theirs] != 0)
    others = known & (first.samples[ours] != other.samples[theirs])
    return Parity(
        common=common.size,
        largest=(float(apart[worst]), int(common[worst])) if common.size and apart[worst] > 0 else (0.0, None),
        parts_at=_first(common, apart > 0),
        exceeds_at=_first(common, apart > SAME_LOSS),
        other_samples=(int(others.sum()), _first(common, others)) if known.any() else None,
        differences=differences,
    )


def differing(trees: list[dict[str, object]]) -> dict[str, list[object]]:
    """The values of each dotted key that are not the same in all trees; a missing one is "-"."""
    flattened = [dict(flat(tree)) for tree in trees]
    keys = list(dict.fromkeys(key for one in flattened for key in one if key))
    told = {key: [one.get(key, "-") for one in flattened] for key in keys}
    return {key: values for key, values in told.items() if any(value != values[0] for value in values)}


def _first(steps: np.ndarray, where: np.ndarray) -> int | None:
    return int(steps[where.argmax()]) if where.any() else None


def _number_of(samples: object) -> int:
    """A number that is the same where a hash is; 0 where there is none."""
    if not isinstance(samples, str) or not samples:
        return 0
    try:
        return (int(samples, 16) & (2**63 - 1)) or 1
    except ValueError:
        return crc32(samples.encode("utf-8", "replace")) or 1
