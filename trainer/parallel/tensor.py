"""Tensor parallelism: each rank of the tensor axis computes some heads and some of the hidden units of every block, by DTensor.

A plan names a model's linear layers: ``colwise`` ones are split by what they put out, ``rowwise`` ones by what they take in; between the
two nothing is sent, behind a rowwise one ranks add up. Embedding and head are split over the vocabulary (parallel/vocabulary.py). A layer may
have several matrices in one (distributed/fused.py): each rank has its share of every one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from trainer.distributed.fused import Fused
from trainer.model.families import Family
from trainer.model.head import DenseHead
from trainer.model.names import put
from trainer.parallel.conv1d import ColumnConv1D, RowConv1D
from trainer.parallel.dropout import drop_apart, may_drop
from trainer.parallel.sequence import matching, sequence_problems, share_inputs, split_sequences
from trainer.parallel.vocabulary import ShardedHead, sharded

if TYPE_CHECKING:
    from trainer.model.skeleton import Skeleton

COLWISE, ROWWISE, SUMMED = "colwise", "rowwise", "replicated_with_grad_allreduce"
GATHERED, RESPLIT = "colwise_gather_output", "rowwise_split_input"
"""The ways of a plan, in transformers' words. A summed module is small and works on split values: its gradient is summed over ranks. What is
gathered is whole on every rank between a colwise layer and a rowwise one, which takes its part of it again."""
WAYS = (COLWISE, ROWWISE, SUMMED, GATHERED, RESPLIT)
_HEADS = ("num_attention_heads", "num_key_value_heads", "num_heads", "n_head", "encoder_attention_heads", "decoder_attention_heads")
"""What configs call their numbers of heads, which ranks share out whole."""
_OF_RANK = ("n_heads", "split_size")
"""What modules know of all heads together and take for a rank's: T5 makes zeros for so many where it has no bias, GPT-2 takes query, key and
value apart by their width."""


@dataclass(frozen=True)
class Split:
    """What has to be known of a model whose tensors are split.

    Attributes:
        summed: names of the parameters whose gradients ranks have to add up after a step's backward.
        fused: by name of a parameter that is several matrices, how they lie in it.
    """

    summed: list[str] = field(default_factory=list)
    fused: dict[str, Fused] = field(default_factory=dict)


def shard_tensors(
    model: Any, family: Family, head: DenseHead | None, tied: dict[str, str], mesh: DeviceMesh, sequence_parallel: bool = False
) -> Split:
    """Splits ``model``, on meta, over the one axis of ``mesh``, in place.

    Args:
        model: the transformers model.
        family: of the model.
        head: its swapped head, if there is one.
        tied: by name of a tied parameter, the name that owns it.
        mesh: the tensor axis.
        sequence_parallel: split what flows between sublayers too, along the sequence.
    """
    for embedding in _embeddings(model):
        embedding.__class__ = sharded(type(embedding))
        _split(embedding, mesh, weight=Shard(0))
    if head is not None:
        head.__class__ = ShardedHead
        _split(head, mesh, weight=Shard(0), bias=Shard(0))
    planned = list(_planned(model, family))
    for _, module, way in planned:
        if way != SUMMED:
            _split_linear(module, way, mesh, sums=not sequence_parallel)
    columns, rows = ([module for _, module, way in planned if way == asked] for asked in (COLWISE, ROWWISE))
    if sequence_parallel:
        summed = split_sequences(model, family, rows, mesh)
    else:
        share_inputs(model, family, mesh)
        summed = [f"{path}.{name}" for path, module, way in planned if way == SUMMED for name, _ in module.named_parameters()]
        if may_drop(model):
            drop_apart(columns, rows, mesh)
    for module in model.modules():
        for name in _OF_RANK:
            if hasattr(module, name):
                setattr(module, name, getattr(module, name) // mesh.size())
    for alias, owner in tied.items():  # one of the two may be known by the other name only
        split = [name for name in (owner, alias) if isinstance(model.get_parameter(name), DTensor)]
        put(model, owner, model.get_parameter(split[0] if split else owner))
        put(model, alias, model.get_parameter(owner))
    return Split(summed, _fused(model, family, mesh.size()))


def tensor_problems(skeleton: Skeleton, degree: int, sequence_parallel: bool = False) -> list[str]:
    """What of a model cannot be split over ``degree`` ranks, one sentence each; with ``sequence_parallel``, of its sequences too."""
    model, family = skeleton.model, skeleton.family
    if not _plan(model, family):
        return [
            f"strategy.tensor={degree}: nobody has said yet how a {family.name} is split: give it a plan in trainer/model/families.py "
            "(docs/adding-a-model-family.md), or use strategy=fsdp."
        ]
    if strange := sorted(set(_plan(model, family).values()) - {*WAYS}):
        return [
            f"strategy.tensor={degree}: transformers splits a {family.name} by {', '.join(strange)} too, which is not done here: use strategy=fsdp."
        ]
    configs = [vars(module.config) for module in model.modules() if isinstance(module, PreTrainedModel)]  # each of two models has its own
    heads = dict.fromkeys((name, config[name]) for config in configs for name in _HEADS if isinstance(config.get(name), int))
    problems = [
        f"strategy.tensor={degree} does not divide the model's {name}={number}: use a divisor of it."
        for name, number in heads
        if number % degree
    ]
    parts = _parts(model, family)
    for path, module, way in _planned(model, family):
        size = None if way == SUMMED else module.weight.shape[_dim(module, way)] // parts.get(path, 1)
        if size is not None and size % degree and not problems:
            problems.append(f"strategy.tensor={degree} does not divide the {size} units of the model's {path}: use a divisor of them.")
    problems += _unplanned(model, family, degree)
    if sequence_parallel:
        problems += sequence_problems(model, family)
    words = min(embedding.num_embeddings for embedding in _embeddings(model))
    if words < degree:
        problems.append(f"strategy.tensor={degree} is more than the model's vocabulary of {words}.")
    return problems


def _plan(model: Any, family: Family) -> dict[str, str]:
    """Patterns of module paths, in which * stands for a number, and the way in which each is split."""
    if family.tensor:
        return family.tensor
    base = getattr(model.config, "base_model_tp_plan", None) or {}
    return {f"{model.base_model_prefix}.{pattern}": way for pattern, way in base.items()}


def _unplanned(model: Any, family: Family, degree: int) -> list[str]:
    """What transformers' own plan leaves out between layers that are split: whether it works on a part or on the whole, nobody says."""
    if family.tensor:
        return []
    planned = {path: way for path, _, way in _planned(model, family)}
    between = tuple({f"{path.rpartition('.')[0]}." for path, way in planned.items() if way == COLWISE})
    names = [name for name, _ in model.named_parameters() if name.startswith(between) and name.rpartition(".")[0] not in planned]
    problems = (
        [f"strategy.tensor={degree}: transformers' plan of a {family.name} does not say how its {names[0]} is split: use strategy=fsdp."]
        if names
        else []
    )
    if getattr(model.config, "clip_qkv", None):  # in place, which a part of a DTensor does not allow
        problems.append(f"strategy.tensor={degree} does not go with the model's clip_qkv={model.config.clip_qkv}: use strategy=fsdp.")
    return problems


def _planned(model: Any, family: Family) -> Iterator[tuple[str, Any, str]]:
    """Yields (path, module, way) of each module that the plan names."""
    for pattern, way in _plan(model, family).items():
        assert way in WAYS, f"{way} of {pattern}"
        yield from ((path, module, way) for path, module in matching(model, [pattern]))


def _embeddings(model: Any) -> list[nn.Embedding]:
    """Every embedding of the vocabulary; of an encoder-decoder with one for both, each module that has it."""
    words = {id(module.get_input_embeddings().weight) for module in model.modules() if isinstance(module, PreTrainedModel)}
    return [module for module in model.modules() if isinstance(module, nn.Embedding) and id(module.weight) in words]


def _parts(model: Any, family: Family) -> dict[str, int]:
    """By path of a module whose tensors are several matrices side by side: how many."""
    return {path: number for pattern, number in family.fused.items() for path, _ in matching(model, [pattern])}


def _fused(model: Any, family: Family, ranks: int) -> dict[str, Fused]:
    """How several matrices lie in the parameters that hold them."""
    return {
        f"{path}.{name}": Fused(_dim(model.get_submodule(path), COLWISE) if parameter.ndim > 1 else 0, number, ranks)
        for path, number in _parts(model, family).items()
        for name, parameter in model.get_submodule(path).named_parameters()
    }


def _dim(module: Any, way: str) -> int:
    """The dim of a module's weight that is split: of what it puts out, or takes in."""
    if isinstance(module, nn.Embedding):
        return 1
    return int((way in (COLWISE, GATHERED)) == isinstance(module, Conv1D))


def _split_linear(module: Any, way: str, mesh: DeviceMesh, sums: bool) -> None:
    """Splits one linear layer; with ``sums`` ranks add up behind a row-wise one, else it gives out what is to be added up."""
    if not isinstance(module, Conv1D):
        styles = {
            COLWISE: ColwiseParallel(),
            ROWWISE: RowwiseParallel() if sums else RowwiseParallel(output_layouts=Partial(), use_local_output=False),
            GATHERED: ColwiseParallel(output_layouts=Replicate()),
            RESPLIT: RowwiseParallel(input_layouts=Replicate()),
        }
        parallelize_module(module, mesh, styles[way], src_data_rank=None)
        return
    _split(module, mesh, weight=Shard(_dim(module, way)), bias=Shard(0) if way == COLWISE else Replicate())
    module.__class__ = ColumnConv1D if way == COLWISE else RowConv1D
    if way == ROWWISE:
        module.sums = sums


def _split(module: Any, mesh: DeviceMesh, **placements: Placement) -> None:
    """Splits a module's parameters over ``mesh``; they are on meta, so nothing is sent."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        split = distribute_tensor(parameter.data, mesh, [placements[name]], src_data_rank=None)
        module.register_parameter(name, nn.Parameter(split, requires_grad=parameter.requires_grad))
