"""First values of a model, drawn from a seed or read from safetensors, one tensor or slice at a time.

No engine ever calls an initialiser on a sharded tensor, and none ever holds the whole model: it asks for what its rank owns.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainer.errors import Refused
from trainer.model.names import aliases
from trainer.model.skeleton import Skeleton

_READ = ("F64", "F32", "F16", "BF16")


class FromSeed:
    """Random weights that depend on the seed and the tensor's name only: not on strategy, world size or order of asking.

    A block is drawn as a whole on the CPU, children before parents, because transformers' ``_init_weights`` of a parent may redraw its
    children (GPT-2 rescales ``c_proj`` so). The last block drawn is kept, so walking the model in order draws each block once.

    Args:
        skeleton: the model on meta; it is copied, since the engine will go on to shard it.
        seed: ``train.seed``.
    """

    def __init__(self, skeleton: Skeleton, seed: int):
        self._model: PreTrainedModel = copy.deepcopy(skeleton.model)
        self._seed = seed
        self._units = list(_units(self._model, skeleton.family.blocks))
        self._aliases = aliases(self._model)
        self._drawn: tuple[str, dict[str, Tensor]] = ("", {})

    def fill(self, name: str, index: tuple[slice, ...] | None = None) -> Tensor:
        """The fp32 CPU value, or its slice, of the parameter or buffer ``name``."""
        name = self._aliases.get(name, name)
        unit = next(unit for unit in self._units if name == unit or name.startswith(unit + "."))
        if self._drawn[0] != unit:
            self._drawn = (unit, self._draw(unit))
        value = self._drawn[1][name]
        return value if index is None else value[index]

    @torch.no_grad()
    def _draw(self, unit: str) -> dict[str, Tensor]:
        module = copy.deepcopy(self._model.get_submodule(unit)).to_empty(device="cpu")
        with torch.random.fork_rng(devices=[]):
            for path, child in _children_first(module, unit):
                torch.manual_seed(named_seed(self._seed, path))
                self._model._init_weights(child)
        tensors = dict(module.named_parameters(prefix=unit)) | dict(module.named_buffers(prefix=unit))
        return {name: tensor.detach() for name, tensor in tensors.items()}


class Unfilled:
    """For a run that goes on from a checkpoint, which holds every parameter: zeros until it is read. Buffers are computed.

    Args:
        skeleton: the model on meta.
        seed: as for ``FromSeed``.
    """

    def __init__(self, skeleton: Skeleton, seed: int):
        self._computed = FromSeed(skeleton, seed)
        self._parameters = {name for name, _ in skeleton.model.named_parameters(remove_duplicate=False)}

    def fill(self, name: str, index: tuple[slice, ...] | None = None) -> Tensor:
        """A zero for a parameter, to be spread over it; the fp32 CPU value of a buffer."""
        return torch.zeros(()) if name in self._parameters else self._computed.fill(name, index)


class FromSafetensors:
    """Pretrained weights out of a folder's ``*.safetensors``; only the slices asked for are read.

    Args:
        skeleton: the model on meta, with the folder as its source.
        seed: for what the folder cannot hold: buffers that are computed, not stored.

    Raises:
        Refused: a parameter is missing from the folder, or has another shape or a quantized type there; the first five.
    """

    def __init__(self, skeleton: Skeleton, seed: int):
        assert skeleton.source is not None
        self._computed = FromSeed(skeleton, seed)
        self._files = _locate(skeleton.source)
        self._prefix = skeleton.model.base_model_prefix + "."
        self._aliases = aliases(skeleton.model)
        self._parameters = {name for name, _ in skeleton.model.named_parameters()}
        if problems := list(islice(self._problems(skeleton), 5)):
            raise Refused(problems)

    def fill(self, name: str, index: tuple[slice, ...] | None = None) -> Tensor:
        """The fp32 CPU value, or its slice, of the parameter or buffer ``name``."""
        name = self._aliases.get(name, name)
        if name not in self._parameters:
            return self._computed.fill(name, index)
        stored = self._stored(name)
        assert stored is not None
        with safe_open(self._files[stored], framework="pt") as file:
            return file.get_slice(stored)[index or (slice(None),)].to(torch.float32)

    def _stored(self, name: str) -> str | None:
        """The name in the files: the full one, or without the base model's prefix (as the first GPT-2 checkpoints have it)."""
        names = [name, name.removeprefix(self._prefix), *(alias for alias, owner in self._aliases.items() if owner == name)]
        return next((candidate for candidate in names if candidate in self._files), None)

    def _problems(self, skeleton: Skeleton) -> Iterator[str]:
        for name, parameter in skeleton.model.named_parameters():
            stored = self._stored(name)
            if stored is None:
                yield f"model.path={skeleton.source}: its safetensors hold no '{name}'."
                continue
            with safe_open(self._files[stored], framework="pt") as file:
                view = file.get_slice(stored)
            if tuple(view.get_shape()) != tuple(parameter.shape):
                asked = tuple(parameter.shape)
                yield f"model.path={skeleton.source}: '{stored}' is {tuple(view.get_shape())} there, but its config.json asks for {asked}."
            elif view.get_dtype() not in _READ:
                kinds = ", ".join(_READ)
                yield f"model.path={skeleton.source}: '{stored}' is {view.get_dtype()} there; weights of {kinds} can be trained on, quantized ones not."


def named_seed(seed: int, *names: str | int) -> int:
    """A seed below 2**63 for one place: the first 8 bytes of SHA-256 over the run's seed and the place's name."""
    digest = hashlib.sha256(":".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _units(model: nn.Module, blocks: str) -> Iterator[str]:
    """Paths of what is drawn at once: each block, and each module outside of blocks that has tensors of its own."""
    for path, module in model.named_modules():
        if path.startswith(blocks + "."):
            if path.count(".") == blocks.count(".") + 1:
                yield path
        elif any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False)):
            yield path


def _children_first(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        yield from _children_first(child, f"{path}.{name}")
    yield path, module


def _locate(folder: Path) -> dict[str, Path]:
    """Maps each tensor name to its file."""
    index = folder / "model.safetensors.index.json"
    try:
        if index.is_file():
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = {Path(file).name for file in weight_map.values()}  # the bare name: an index cannot point outside of its folder
            files = [folder / name for name in sorted(names)]
        else:
            files = sorted(folder.glob("*.safetensors"))
        located: dict[str, Path] = {}
        for path in files:
            with safe_open(path, framework="pt") as opened:
                located.update(dict.fromkeys(opened.keys(), path))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise Refused(f"model.path={folder}: its safetensors cannot be read: {error}") from error
    if not located:
        raise Refused(
            f"model.path={folder} holds no *.safetensors. Weights in .bin or .pt files can run code when loaded and are not read; "
            "convert them once with transformers' save_pretrained."
        )
    return located
