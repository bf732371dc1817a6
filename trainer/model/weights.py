"""First values of a model, drawn from a seed or read from safetensors, one tensor or slice at a time.

No engine ever calls an initialiser on a sharded tensor, and none ever holds the whole model: it asks for what its rank owns.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming

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
        read: names of the parameters that somebody else has values for.

    Raises:
        Refused: transformers does not say how some tensor begins.
    """

    def __init__(self, skeleton: Skeleton, seed: int, read: Collection[str] = ()):
        self.new: list[str] = []
        self._model: PreTrainedModel = copy.deepcopy(skeleton.model)
        self._seed = seed
        self._units = list(_units(self._model, skeleton.family.blocks))
        self._aliases = aliases(self._model)
        self._drawn: tuple[str, dict[str, Tensor]] = ("", {})
        if left := sorted(_left_alone(self._model) - {*read}):
            raise Refused(
                f"model: transformers does not say how {left[0]} of a {skeleton.family.name} begins, so that a seed cannot draw it: "
                "choose another model."
            )

    def fill(self, name: str, index: tuple[slice, ...] | None = None) -> Tensor:
        """The fp32 CPU value, or its slice, of the parameter or buffer ``name``."""
        name = self._aliases.get(name, name)
        unit = next(unit for unit in self._units if unit.holds(name))
        if self._drawn[0] != unit.path or not self._drawn[1]:
            self._drawn = (unit.path, self._draw(unit))
        value = self._drawn[1][name]
        return value if index is None else value[index]

    @torch.no_grad()
    def _draw(self, unit: _Unit) -> dict[str, Tensor]:
        original = self._model.get_submodule(unit.path)
        module = copy.deepcopy(original).to_empty(device="cpu") if unit.whole else _own_tensors_only(original)
        drawer = _nearest_model(self._model, unit.path)
        with torch.random.fork_rng(devices=[]):
            for path, child in _children_first(module, unit.path) if unit.whole else [(unit.path, module)]:
                torch.manual_seed(named_seed(self._seed, path))
                drawer._init_weights(child)
        named = dict(module.named_parameters(unit.path, unit.whole)) | dict(module.named_buffers(unit.path, unit.whole))
        return {name: tensor.detach() for name, tensor in named.items()}


class Unfilled:
    """For a run that goes on from a checkpoint, which holds every parameter: zeros until it is read. Buffers are computed.

    Args:
        skeleton: the model on meta.
        seed: as for ``FromSeed``.
    """

    def __init__(self, skeleton: Skeleton, seed: int):
        self.new: list[str] = []
        self._parameters = {name for name, _ in skeleton.model.named_parameters(remove_duplicate=False)}
        self._computed = FromSeed(skeleton, seed, self._parameters)

    def fill(self, name: str, index: tuple[slice, ...] | None = None) -> Tensor:
        """A zero for a parameter, to be spread over it; the fp32 CPU value of a buffer."""
        return torch.zeros(()) if name in self._parameters else self._computed.fill(name, index)


class FromSafetensors:
    """Pretrained weights out of folders' ``*.safetensors``; only the slices asked for are read.

    Args:
        skeleton: the model on meta, with its folders.
        seed: for what the folders do not hold: buffers that are computed, and the head of a task that is new to the weights.

    Attributes:
        new: names of the parameters that are drawn from the seed.

    Raises:
        Refused: a parameter is missing from the folders, or has another shape or a quantized type there; the first five.
    """

    def __init__(self, skeleton: Skeleton, seed: int):
        assert skeleton.folders
        renamings = [way for way in get_model_conversion_mapping(skeleton.model) if isinstance(way, WeightRenaming)]
        self._parts = {prefix: _Stored(prefix, folder, renamings) for prefix, folder in skeleton.folders.items()}
        self._base = skeleton.model.base_model_prefix if "" in self._parts else skeleton.model.encoder.base_model_prefix
        self._aliases = aliases(skeleton.model)
        self._parameters = {name for name, _ in skeleton.model.named_parameters()}
        self._drawn = FromSeed(skeleton, seed, {name for name in self._parameters if self._find(name)[1] is not None})
        self.new: list[str] = []
        if problems := list(islice(self._problems(skeleton), 5)):
            raise Refused(problems)

    def fill(self, name: str, index: tuple[slice, ...] | None = None) -> Tensor:
        """The fp32 CPU value, or its slice, of the parameter or buffer ``name``."""
        name = self._aliases.get(name, name)
        if name not in self._parameters or name in self.new:
            return self._drawn.fill(name, index)
        part, stored = self._find(name)
        assert stored is not None
        return part.read(stored, index)

    def _find(self, name: str) -> tuple[_Stored, str | None]:
        """Whose the parameter is, and its name there: the full one, or with or without the base model's prefix.

        The first GPT-2 checkpoints are without, and so is an encoder that was saved alone.
        """
        prefix = next((prefix for prefix in self._parts if name.startswith(prefix)), None)
        if prefix is None:  # it joins the parts and is in none of them
            return next(iter(self._parts.values())), None
        part, base = self._parts[prefix], self._base + "."
        names = [name, *(alias for alias, owner in self._aliases.items() if owner == name)]
        names = [name.removeprefix(prefix) for name in names]
        names += [names[0].removeprefix(base), base + names[0]]
        return part, next((candidate for candidate in names if candidate in part.files), None)

    def _problems(self, skeleton: Skeleton) -> Iterator[str]:
        for name, parameter in skeleton.model.named_parameters():
            part, stored = self._find(name)
            may_be_new = any(words in f".{name}" or name.startswith(words) for words in skeleton.head.new)
            if stored is None and may_be_new:
                self.new.append(name)
            elif stored is None:
                yield f"{part.named}: its safetensors hold no '{name}'."
            elif (shape := part.shape(stored)) != tuple(parameter.shape) and may_be_new and skeleton.task == "classification":
                self.new.append(name)  # a head for other classes
            elif shape != tuple(parameter.shape):
                asked = tuple(parameter.shape)
                yield f"{part.named}: '{stored}' is {shape} there, but its config.json asks for {asked}."
            elif (kind := part.dtype(stored)) not in _READ:
                kinds = ", ".join(_READ)
                yield f"{part.named}: '{stored}' is {kind} there; weights of {kinds} can be trained on, quantized ones not."
        for path in filter(None, [skeleton.head.bias]):
            part, stored = self._find(path)
            if stored is not None and part.read(stored, None).any():
                yield f"{part.named}: '{stored}' is not zero; a bias that is added after the head cannot be trained on here."


class _Stored:
    """The tensors of one folder's ``*.safetensors``: ``files`` maps the name of each to its file and to what it is called there.

    transformers calls some parameters otherwise in files than in a live model (GPT-NeoX's head), and knows what they were called once.
    """

    def __init__(self, prefix: str, folder: Path, renamings: list[WeightRenaming]):
        self.named = f"model.{prefix.rstrip('.') or 'path'}={folder}"
        self.files: dict[str, tuple[Path, str]] = {}
        for stored, path in _locate(folder, self.named).items():
            name = stored
            for renaming in renamings:
                name, _ = renaming.rename_source_key(name)
            self.files[name] = path, stored

    @contextmanager
    def _open(self, name: str) -> Iterator[Any]:
        path, stored = self.files[name]
        with safe_open(path, framework="pt") as file:
            yield file.get_slice(stored)

    def read(self, name: str, index: tuple[slice, ...] | None) -> Tensor:
        with self._open(name) as stored:
            return stored[index or (slice(None),)].to(torch.float32)

    def shape(self, name: str) -> tuple[int, ...]:
        with self._open(name) as stored:
            return tuple(stored.get_shape())

    def dtype(self, name: str) -> str:
        with self._open(name) as stored:
            return stored.get_dtype()


def named_seed(seed: int, *names: str | int) -> int:
    """A seed below 2**63 for one place: the first 8 bytes of SHA-256 over the run's seed and the place's name."""
    digest = hashlib.sha256(":".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@dataclass(frozen=True)
class _Unit:
    """What is drawn at once: a module with all below it, or (not ``whole``) only the tensors that it has itself."""

    path: str
    whole: bool

    def holds(self, name: str) -> bool:
        if self.whole:
            return name.startswith(self.path + ".")
        return name.rpartition(".")[0] == self.path


def _units(model: nn.Module, blocks: tuple[str, ...]) -> Iterator[_Unit]:
    """Each block, and each module outside of blocks that has tensors of its own."""
    for path, module in model.named_modules():
        inside = next((block for block in blocks if path.startswith(block + ".")), None)
        if inside is not None:
            if path.count(".") == inside.count(".") + 1:
                yield _Unit(path, whole=True)
        elif any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False)):
            yield _Unit(path, whole=not any(block.startswith(path) for block in blocks))


class _Writes(TorchDispatchMode):
    """Notes which memory is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.to: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function._schema.is_mutable:
            self.to.add(args[0].untyped_storage()._cdata)
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def _left_alone(model: PreTrainedModel) -> set[str]:
    """Names of the tensors of a model on meta that its initialisation does not touch: a seed would leave in them what was in memory."""
    with _Writes() as writes:
        for path, child in _children_first(model, ""):
            _nearest_model(model, path.removeprefix("."))._init_weights(child)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name for name, tensor in tensors if tensor.untyped_storage()._cdata not in writes.to}


def _own_tensors_only(module: nn.Module) -> nn.Module:
    """A module with memory for its own tensors, whose children stay on meta, where drawing them does nothing."""
    shallow = copy.copy(module)
    own = {name: nn.Parameter(torch.empty_like(p, device="cpu")) for name, p in module.named_parameters(recurse=False)}
    shallow._parameters = {**module._parameters, **own}
    shallow._buffers = dict(module._buffers) | {name: torch.empty_like(b, device="cpu") for name, b in module.named_buffers(recurse=False)}
    return shallow


def _nearest_model(model: PreTrainedModel, path: str) -> PreTrainedModel:
    """The innermost transformers model around ``path``, whose business its initialisation is."""
    while path:
        if isinstance(inner := model.get_submodule(path), PreTrainedModel):
            return inner
        path = path.rpartition(".")[0]
    return model


def _children_first(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        yield from _children_first(child, f"{path}.{name}")
    yield path, module


def _locate(folder: Path, named: str) -> dict[str, Path]:
    """Maps each tensor name to its file; ``named`` is the folder as messages name it."""
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
        raise Refused(f"{named}: its safetensors cannot be read: {error}") from error
    if not located:
        raise Refused(
            f"{named} holds no *.safetensors. Weights in .bin or .pt files can run code when loaded and are not read; "
            "convert them once with transformers' save_pretrained."
        )
    return located
