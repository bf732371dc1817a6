"""Mesh axes and the product rule: the degrees multiply to the number of ranks. Free of torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from trainer.errors import Refused

AXES = ("replicate", "shard")
"""Mesh axes, outermost first: neighbouring ranks, on one machine, are neighbours on the last axis."""


@dataclass(frozen=True)
class Degrees:
    """How many ranks lie along each axis."""

    replicate: int
    shard: int

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.replicate * self.shard

    @property
    def shape(self) -> tuple[int, ...]:
        """One number per axis, in the order of ``AXES``."""
        return tuple(asdict(self)[axis] for axis in AXES)


def resolve(replicate: int | None, shard: int | None, world_size: int) -> Degrees:
    """Fills in a degree that is None with the ranks that the other leaves over; with both None, shard takes all.

    Args:
        replicate: ranks that hold copies, or None.
        shard: ranks over which one copy is spread, or None.
        world_size: number of ranks.

    Raises:
        Refused: the degrees do not multiply to ``world_size``, naming each.
    """
    if replicate is None and shard is None:
        return Degrees(1, world_size)
    asked = {"replicate": replicate, "shard": shard}
    fixed = {f"strategy.{axis}={degree}": degree for axis, degree in asked.items() if degree is not None}
    product = (replicate or 1) * (shard or 1)
    if len(fixed) == len(AXES):
        if product != world_size:
            raise Refused(f"{' x '.join(fixed)} needs {ranks(product)}, but this run has {world_size}: {_start(product, world_size)}.")
        return Degrees(product // (shard or 1), shard or 1)
    if world_size % product:
        name = next(iter(fixed))
        raise Refused(
            f"{name} does not divide the {ranks(world_size)} of this run: use a divisor of {world_size}, or {_start(product, None)}."
        )
    return Degrees(replicate or world_size // product, shard or world_size // product)


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
