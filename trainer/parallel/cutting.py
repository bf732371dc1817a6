"""How a stock transformers model is cut: of every module that goes with another stage, only the place is left.

What stands there gives on what it is given. The model's own forward then makes masks and positions from the micro-batch, which each rank has,
and skips to this stage's blocks. Names stay the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainer.model.families import Family
from trainer.model.names import aliases
from trainer.parallel.stages import SPLIT

if TYPE_CHECKING:
    from trainer.model.skeleton import Skeleton


@dataclass(frozen=True)
class Places:
    """Which block each parameter of a model goes with.

    Attributes:
        of: by every name, tied ones under each of theirs: the number of the block, counted through all stacks.
        owner: by the further names of a tied parameter, its first.
        stacks: the number of blocks of each stack.
    """

    of: dict[str, int]
    owner: dict[str, str]
    stacks: tuple[int, ...]

    @property
    def num_blocks(self) -> int:
        """Of all stacks."""
        return sum(self.stacks)

    def stack(self, block: int) -> int:
        """The stack that a block is in."""
        return 0 if block < self.stacks[0] else 1


def places(model: Any, family: Family) -> Places:
    """Finds out which block everything in ``model`` goes with: what comes before a stack with its first, what comes behind it with its last."""
    stacks = tuple(len(model.get_submodule(path)) for path in family.blocks)
    starts = [sum(stacks[:number]) for number in range(len(stacks))]
    of = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        of[name] = sum(stacks) - 1  # the head, unless it is found to be something else
        for start, size, path, before in zip(starts, stacks, family.blocks, family.before, strict=True):
            if name.startswith(f"{path}."):
                of[name] = start + int(name.removeprefix(f"{path}.").split(".")[0])
            elif any(name.startswith(f"{entrance}.") for entrance in before):
                of[name] = start
            elif len(stacks) == 2 and start == 0 and name.startswith(f"{encoder_path(family)}."):
                of[name] = size - 1
    return Places(of, aliases(model), stacks)


def pipeline_problems(skeleton: Skeleton, schedule: str) -> list[str]:
    """What keeps a model from being cut into the stages of a schedule, one sentence each."""
    family = skeleton.family
    if not family.before:
        return [
            f"strategy.pipeline: nobody has said yet where a {family.name} is cut: give it ``before`` in trainer/model/families.py "
            "(docs/adding-a-model-family.md), or use strategy=fsdp."
        ]
    if len(set(widths(skeleton.model).values())) > 1:
        return ["strategy.pipeline: the model's encoder and decoder are not of one width, which a pipeline does not do: use strategy=fsdp."]
    if drops := [name for name, value in vars(skeleton.model.config).items() if "layerdrop" in name and value]:
        return [f"strategy.pipeline: the model leaves out blocks at random ({drops[0]}), which stages cannot agree on: set it to 0."]
    if schedule in SPLIT and len(family.blocks) == 2:
        return [
            f"strategy.schedule={schedule} takes the backward apart, which torch cannot do where each block of a decoder reads what the encoder "
            "put out: use strategy.schedule=1f1b or interleaved_1f1b."
        ]
    return []


def costs(model: nn.Module, where: Places) -> list[float]:
    """What each block costs with all that goes with it: its share of the memory and its share of the arithmetic, on average."""
    words = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.Embedding)}
    memory, work = [0] * where.num_blocks, [0] * where.num_blocks
    held = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        block, owner = where.of[name], where.owner.get(name, name)
        memory[block] += parameter.numel() if (owner, block) not in held else 0
        work[block] += 0 if name in words or parameter.ndim < 2 else parameter.numel()
        held.add((owner, block))
    return [(m / sum(memory) + w / sum(work)) / 2 for m, w in zip(memory, work, strict=True)]


def crossing(where: Places, block: int) -> tuple[str, ...]:
    """What is sent where the pipeline is cut before ``block``: by the input whose slots each tensor of hidden states has."""
    if len(where.stacks) == 1 or block <= where.stacks[0]:
        return ("input_ids",)
    return ("input_ids", "decoder_input_ids")


def encodes_only(where: Places, own: range) -> bool:
    """Whether a stage of these blocks has nothing behind the encoder of an encoder-decoder."""
    return len(where.stacks) == 2 and own.stop <= where.stacks[0]


def widths(model: Any) -> dict[str, int]:
    """The width of the hidden states that belong to each input."""
    config = model.config
    sides = {"input_ids": getattr(config, "encoder", None), "decoder_input_ids": getattr(config, "decoder", None)}
    return {name: (config if side is None or isinstance(side, dict) else side).hidden_size for name, side in sides.items()}


class Absent(nn.Module):
    """Stands where a module of another stage was: hidden states pass, and for ids come zeros, whose shape is all that matters.

    Args:
        width: of hidden states.
        dtype: of hidden states.
        outputs: how many values the module gives back.
    """

    def __init__(self, width: int, dtype: torch.dtype, outputs: int = 1):
        super().__init__()
        self._width, self._dtype, self._outputs = width, dtype, outputs
        self.puts_in: Tensor | None = None
        self.saw: Tensor | None = None

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Gives on the first tensor, or what was received in its place, and remembers it."""
        given = next(value for value in (*arguments, *named.values()) if isinstance(value, Tensor))
        if given.ndim < 3:
            return torch.zeros((), dtype=self._dtype, device=given.device).expand(*given.shape, self._width)
        self.saw = given if self.puts_in is None else self.puts_in
        return self.saw if self._outputs == 1 else (self.saw, *[None] * (self._outputs - 1))


def cut(
    model: Any, family: Family, where: Places, own: range, dtype: torch.dtype, bias: str | None, device: torch.device
) -> dict[str, str]:
    """Takes everything out of ``model`` that does not go with the blocks ``own``.

    Args:
        model: the transformers model, on meta, its head swapped and its tensors split already.
        family: of the model.
        where: which block everything goes with.
        own: this stage's.
        dtype: of hidden states.
        bias: dotted path of a buffer that the model adds to what its head puts out.
        device: this rank's.

    Returns:
        The owner's name of each parameter that is left and is not known here by it.
    """
    known = {name: owner for name, owner in where.owner.items() if where.of[name] in own}
    absent = list(_absent(model, where, own))
    for path, start in zip(family.blocks, (0, where.stacks[0]), strict=False):
        first = max(start, own.start)
        if start < first < min(own.stop, start + where.stacks[where.stack(start)]):
            for below, flag in family.carried.items():
                known |= _carry(model, path, first - start, below, flag)
    width = next(iter(widths(model).values()))
    for path in absent:
        parent, _, name = path.rpartition(".")
        is_block = parent in family.blocks
        stand_in = Absent(width, dtype, family.block_outputs if is_block else 1)
        if isinstance(owner := model.get_submodule(path), PreTrainedModel):
            stand_in.config = owner.config  # which the model around it may want to see
        setattr(model.get_submodule(parent), name, stand_in)
    if bias is not None and own.stop < where.num_blocks:
        parent, _, name = bias.rpartition(".")
        delattr(model.get_submodule(parent), name)
        setattr(model.get_submodule(parent), name, torch.zeros(1, device=device))
    return known


def _carry(model: Any, path: str, number: int, below: str, flag: str) -> dict[str, str]:
    """Lets block ``number`` of a list have a module of its first block; gives the names of its parameters there by those here."""
    blocks = model.get_submodule(path)
    parent, _, leaf = below.rpartition(".")
    owner = blocks[number].get_submodule(parent)
    setattr(owner, leaf, blocks[0].get_submodule(below))
    setattr(owner, flag, True)
    names = [name for name, _ in blocks[0].get_submodule(below).named_parameters()]
    return {f"{path}.{number}.{below}.{name}": f"{path}.0.{below}.{name}" for name in names}


def _absent(model: nn.Module, where: Places, own: range, path: str = "") -> Iterator[str]:
    """The largest modules below ``path`` of which nothing goes with the blocks ``own``; lists are gone into, so that they keep their length."""
    for name, child in model.get_submodule(path).named_children():
        below = f"{path}.{name}" if path else name
        held = [where.of.get(f"{below}.{leaf}") in own for leaf, _ in child.named_parameters(remove_duplicate=False)]
        if held and not any(held) and not isinstance(child, nn.ModuleList):
            yield below
        elif held and not all(held):
            yield from _absent(model, where, own, below)


def encoder_path(family: Family) -> str:
    """Dotted path of the encoder of an encoder-decoder."""
    return family.blocks[0].split("encoder")[0] + "encoder"


def stand_in(model: Any, family: Family, where: Places, block: int, beside: int) -> Absent | None:
    """What stands in the place of ``block``, where that is in one list with ``beside``."""
    if not 0 <= block < where.num_blocks or where.stack(block) != where.stack(beside):
        return None
    stack = where.stack(block)
    found = model.get_submodule(family.blocks[stack])[block - sum(where.stacks[:stack])]
    assert isinstance(found, Absent)
    return found
