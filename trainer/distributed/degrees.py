"""Mesh axes and the product rule: the degrees multiply to the number of ranks. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from trainer.errors import Refused

AXES = ("pipeline", "replicate", "shard", "tensor")
"""Mesh axes, outermost first: neighbouring ranks, on one machine, are neighbours on the last axis. Ranks that share out the slots of a sequence
(context) will lie between the last two."""


@dataclass(frozen=True, kw_only=True)
class Degrees:
    """How many ranks lie along each axis."""

    pipeline: int = 1
    replicate: int
    shard: int
    tensor: int = 1

    @property
    def size(self) -> int:
        """Number of ranks."""
        return math.prod(self.shape)

    @property
    def data(self) -> int:
        """Number of ranks that see different samples."""
        return self.replicate * self.shard

    @property
    def shape(self) -> tuple[int, ...]:
        """One number per axis, in the order of ``AXES``."""
        return tuple(asdict(self)[axis] for axis in AXES)


def resolve(asked: Mapping[str, int | None], world_size: int) -> Degrees:
    """Fills in a degree that is None with the ranks that the others leave over; of several, the pipeline takes them, or else the innermost; the others are 1.

    Args:
        asked: the degree of each axis in ``AXES``, or None.
        world_size: number of ranks.

    Raises:
        Refused: the degrees do not multiply to ``world_size``, naming each.
    """
    known = {axis: degree or 1 for axis, degree in asked.items()}
    product = math.prod(known.values())
    open_axes = [axis for axis in AXES if asked[axis] is None]
    fixed = [f"strategy.{axis}={degree}" for axis, degree in asked.items() if degree is not None and degree > 1]
    if not open_axes and product != world_size:
        every = fixed or [f"strategy.{axis}={degree}" for axis, degree in asked.items()]
        raise Refused(f"{' x '.join(every)} needs {ranks(product)}, but this run has {world_size}: {_start(product, world_size)}.")
    if world_size % product:
        raise Refused(
            f"{' x '.join(fixed)} does not divide the {ranks(world_size)} of this run: use a divisor of {world_size}, "
            f"or {_start(product, None)}."
        )
    if open_axes:
        known["pipeline" if "pipeline" in open_axes else open_axes[-1]] = world_size // product
    return Degrees(**known)


def ranks(number: int) -> str:
    """``1 rank``, ``2 ranks`` ..."""
    return f"{number} rank" if number == 1 else f"{number} ranks"


def _start(product: int, world_size: int | None) -> str:
    """How to start as many ranks as the degrees ask for."""
    if world_size is None:
        return f"start a multiple of {product} (torchrun --nproc-per-node {product} train.py ...)"
    return (
        f"start that many (torchrun --nproc-per-node {product} train.py ...), or set one of the degrees to null to take what is left over"
    )
