"""Dropout under tensor parallelism: ranks drop the same of what each has whole, and draw anew for what each has a part of.

Ranks of the tensor axis see the same samples and seed the global generators alike (engine/loop.py): masks of the residual stream agree by
themselves. Those of a rank's own heads and hidden units must not: the masks of heads would repeat from rank to rank. So while activations are
split, the generators are seeded by a number drawn before and by the rank. That number is part of the shared stream: a rerun step repeats it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.modules.dropout import _DropoutNd

from trainer.model.weights import named_seed


def generators(device: torch.device) -> list[torch.Generator]:
    """The global generators from which dropout on ``device`` draws, the CPU's first."""
    if device.type != "cuda":
        return [torch.default_generator]
    return [torch.default_generator, torch.cuda.default_generators[device.index]]


def may_drop(model: Any) -> bool:
    """Whether a transformers model draws random numbers in training: seeding for one that does not is time lost in every micro-batch."""
    fields = model.config.to_dict().items()
    return any("drop" in key and value for key, value in fields) or any(isinstance(m, _DropoutNd) and m.p > 0 for m in model.modules())


class Draws:
    """Dropout draws from (seed, step, data rank, micro-batch; in a pipeline the stage too): nothing about it needs saving, and a rerun step repeats it.

    Args:
        seed: ``train.seed``.
        data_rank: this rank's place among those that see different samples.
        device: this rank's.
        models: transformers models; where none of them drops anything, nothing is seeded.
    """

    def __init__(self, seed: int, data_rank: int, device: torch.device, models: Iterable[Any]):
        self._seed, self._data_rank = seed, data_rank
        self._generators = generators(device) if any(map(may_drop, models)) else []

    def at(self, *place: int) -> AbstractContextManager[None]:
        """While inside, the global generators, from which alone it can be drawn, are those of ``place``; then they are put back."""
        return self._seeded(*place) if self._generators else nullcontext()

    @contextmanager
    def _seeded(self, step: int, *others: int) -> Iterator[None]:
        states = [generator.get_state() for generator in self._generators]
        for generator in self._generators:
            generator.manual_seed(named_seed(self._seed, "dropout", step, self._data_rank, *others))
        try:
            yield
        finally:
            for generator, state in zip(self._generators, states, strict=True):
                generator.set_state(state)


class Apart:
    """The stretches of a forward in which this rank draws random numbers of its own.

    Args:
        mesh: the tensor axis.
    """

    def __init__(self, mesh: DeviceMesh):
        self._rank = mesh.get_local_rank()
        self._generators = generators(torch.device(mesh.device_type, torch.cuda.current_device() if mesh.device_type == "cuda" else 0))
        self._before: list[torch.Tensor] | None = None

    def begin(self) -> None:
        """Leaves the shared stream; nothing where that was done already, as by the first of query, key and value."""
        if self._before is not None:
            return
        seed = int(torch.randint(2**62, ()))  # on the CPU: nothing waits for a device
        self._before = [generator.get_state() for generator in self._generators]
        for generator in self._generators:
            generator.manual_seed(named_seed(seed, "tensor", self._rank))

    def end(self) -> None:
        """Goes on with the shared stream where it was left."""
        if self._before is None:
            return
        for generator, state in zip(self._generators, self._before, strict=True):
            generator.set_state(state)
        self._before = None


def drop_apart(columns: Iterable[nn.Module], rows: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Lets ranks draw by themselves from each ``columns`` layer, whose output is split, to the ``rows`` layer that takes it in."""
    apart = Apart(mesh)

    def begin(module: nn.Module, arguments: Any, output: Any) -> None:
        if module.training:
            apart.begin()

    def end(module: nn.Module, arguments: Any) -> None:
        apart.end()

    for module in columns:
        module.register_forward_hook(begin)
    for module in rows:
        module.register_forward_pre_hook(end)
