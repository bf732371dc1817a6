"""Tensor parallelism: each rank of the tensor axis computes some heads and some of the hidden units of every block, by DTensor.

A plan names a model's linear layers: ``colwise`` ones are split by what they put out, ``rowwise`` ones by what they take in; between the
two nothing is sent, behind a rowwise one ranks add up. Embedding and head are split over the vocabulary (parallel/vocabulary.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import PreTrainedModel

from trainer.model.families import Family
from trainer.model.head import DenseHead
from trainer.model.names import put
from trainer.parallel.dropout import drop_apart, may_drop
from trainer.parallel.sequence import matching, sequence_problems, share_inputs, split_sequences
from trainer.parallel.vocabulary import ShardedEmbedding, ShardedHead

if TYPE_CHECKING:
    from trainer.model.skeleton import Skeleton

COLWISE, ROWWISE, SUMMED = "colwise", "rowwise", "replicated_with_grad_allreduce"
"""The ways of a plan, in transformers' words; the last is a small module that works on split values: its gradient is summed over ranks."""
_HEADS = ("num_attention_heads", "num_key_value_heads", "num_heads", "n_head", "encoder_attention_heads", "decoder_attention_heads")
"""What configs call their numbers of heads, which ranks share out whole."""


def shard_tensors(
    model: Any, family: Family, head: DenseHead | None, tied: dict[str, str], mesh: DeviceMesh, sequence_parallel: bool = False
) -> list[str]:
    """Splits ``model``, on meta, over the one axis of ``mesh``, in place.

    Args:
        model: the transformers model.
        family: of the model.
        head: its swapped head, if there is one.
        tied: by name of a tied parameter, the name that owns it.
        mesh: the tensor axis.
        sequence_parallel: split what flows between sublayers too, along the sequence.

    Returns:
        Names of the parameters whose gradients ranks have to add up after a step's backward.
    """
    for embedding in _embeddings(model):
        embedding.__class__ = ShardedEmbedding
        _split(embedding, mesh)
    if head is not None:
        head.__class__ = ShardedHead
        _split(head, mesh)
    planned = list(_planned(model, family))
    rowwise = RowwiseParallel(output_layouts=Partial(), use_local_output=False) if sequence_parallel else RowwiseParallel()
    for _, module, way in planned:
        if way != SUMMED:
            parallelize_module(module, mesh, ColwiseParallel() if way == COLWISE else rowwise, src_data_rank=None)
    columns, rows = ([module for _, module, way in planned if way == asked] for asked in (COLWISE, ROWWISE))
    if sequence_parallel:
        summed = split_sequences(model, family, rows, mesh)
    else:
        share_inputs(model, family, mesh)
        summed = [f"{path}.{name}" for path, module, way in planned if way == SUMMED for name, _ in module.named_parameters()]
        if may_drop(model):
            drop_apart(columns, rows, mesh)
    for module in model.modules():
        if hasattr(module, "n_heads"):  # T5 makes zeros for so many where it has no bias
            module.n_heads //= mesh.size()
    for alias, owner in tied.items():  # one of the two may be known by the other name only
        split = [name for name in (owner, alias) if isinstance(model.get_parameter(name), DTensor)]
        put(model, owner, model.get_parameter(split[0] if split else owner))
        put(model, alias, model.get_parameter(owner))
    return summed


def tensor_problems(skeleton: Skeleton, degree: int, sequence_parallel: bool = False) -> list[str]:
    """What of a model cannot be split over ``degree`` ranks, one sentence each; with ``sequence_parallel``, of its sequences too."""
    model, family = skeleton.model, skeleton.family
    if not _plan(model, family):
        return [
            f"strategy.tensor={degree}: nobody has said yet how a {family.name} is split: give it a plan in trainer/model/families.py "
            "(docs/adding-a-model-family.md), or use strategy=fsdp."
        ]
    problems = []
    for name in _HEADS:
        number = getattr(model.config, name, None)
        if isinstance(number, int) and number % degree:
            problems.append(f"strategy.tensor={degree} does not divide the model's {name}={number}: use a divisor of it.")
    for path, module, way in _planned(model, family):
        size = None if way == SUMMED else (module.weight.shape[-1] if way == ROWWISE else module.weight.shape[0])
        if size is not None and size % degree and not problems:
            problems.append(f"strategy.tensor={degree} does not divide the {size} units of the model's {path}: use a divisor of them.")
    if sequence_parallel:
        problems += sequence_problems(model, family)
    if model.config.vocab_size < degree:
        problems.append(f"strategy.tensor={degree} is more than the model's vocabulary of {model.config.vocab_size}.")
    return problems


def _plan(model: Any, family: Family) -> dict[str, str]:
    """Patterns of module paths, in which * stands for a number, and the way in which each is split."""
    if family.tensor:
        return family.tensor
    base = getattr(model.config, "base_model_tp_plan", None) or {}
    return {f"{model.base_model_prefix}.{pattern}": way for pattern, way in base.items()}


def _planned(model: Any, family: Family) -> Iterator[tuple[str, Any, str]]:
    """Yields (path, module, way) of each module that the plan names."""
    for pattern, way in _plan(model, family).items():
        assert way in (COLWISE, ROWWISE, SUMMED), f"{way} of {pattern}"
        yield from ((path, module, way) for path, module in matching(model, [pattern]))


def _embeddings(model: Any) -> list[nn.Embedding]:
    """Every embedding of the vocabulary; of an encoder-decoder with one for both, each module that has it."""
    words = {id(module.get_input_embeddings().weight) for module in model.modules() if isinstance(module, PreTrainedModel)}
    return [module for module in model.modules() if isinstance(module, nn.Embedding) and id(module.weight) in words]


def _split(module: Any, mesh: DeviceMesh) -> None:
    """Splits the rows of a module's parameters, and its bias, over ``mesh``; they are on meta, so nothing is sent."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        split = distribute_tensor(parameter.data, mesh, [Shard(0)], src_data_rank=None)
        module.register_parameter(name, nn.Parameter(split, requires_grad=parameter.requires_grad))
