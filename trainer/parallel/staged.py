"""From a skeleton to the stages of a pipeline that a rank has: the order of parallelize.py, for each of them, with the cut in its place."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from trainer.distributed.fused import Fused
from trainer.errors import Refused
from trainer.model.head import DenseHead, Scorer, swap_head
from trainer.model.names import aliases, named_owners
from trainer.model.skeleton import blocks_of
from trainer.parallel import fsdp
from trainer.parallel.activation import recompute_blocks
from trainer.parallel.compiling import compile_blocks
from trainer.parallel.cutting import Places, cut, encoder_path, encodes_only, places
from trainer.parallel.layout import Layout
from trainer.parallel.parallelize import Parallelized, allocate, fill, with_moments
from trainer.parallel.pipeline import Feed, Pipelined, Shared, Stage
from trainer.parallel.stages import SPLIT, Stages
from trainer.parallel.tensor import Split, shard_tensors
from trainer.precision.dtypes import DTYPES
from trainer.protocols import EngineJob


def parallelize_stages(job: EngineJob, layout: Layout) -> Parallelized:
    """Prepares the stages of ``layout.stages`` that are this rank's; ``job.skeleton`` stays on meta."""
    stages = layout.stages
    assert stages is not None
    whole, family, mesh = job.skeleton.model, job.skeleton.family, job.mesh
    where, feed = places(whole, family), Feed()
    own = stages.of_rank(mesh.get_local_rank("pipeline"))
    built, blocks, named, summed = [], [], [], []
    fused: dict[str, Fused] = {}
    for index in own:
        stage, present, known, split = _stage(job, layout, where, index, feed)
        local = list(named_owners(stage.model))
        fill([*((known.get(name, name), value) for name, value in local), *stage.model.named_buffers()], job.weights, split.fused)
        built.append(stage)
        blocks += present
        named += [(known.get(name, name), parameter) for name, parameter in local]
        summed += [parameter for name, parameter in local if name in split.summed or known.get(name) in split.summed]
        fused |= split.fused
    held = holders(family.carried, whole, family.blocks, where, stages)
    models = nn.ModuleList(stage.model for stage in built)
    return Parallelized(
        models,
        blocks[0],
        built[-1].scorer,
        built[-1].scorer,
        lambda is_last: nullcontext(),
        named,
        with_moments(job, named),
        gather_root=lambda: None,
        rehearses=False,
        summed=summed,
        fused=fused,
        pipeline=Pipelined(
            stages,
            tuple(built),
            feed,
            _shared(named, held, stages, mesh),
            [len(held[name]) for name, _ in named],
            partial(assembled, job, named, held, fused, layout),
            mesh.get_group("pipeline"),
        ),
    )


def _stage(job: EngineJob, layout: Layout, where: Places, index: int, feed: Feed) -> tuple[Stage, list[nn.Module], dict[str, str], Split]:
    """One stage with memory, its blocks, the owners' names of what it knows by others, and how the whole model's tensors are split."""
    stages, family, mesh, ending = layout.stages, job.skeleton.family, job.mesh, job.skeleton.head
    assert stages is not None
    model: Any = copy.deepcopy(job.skeleton.model)
    head: DenseHead | None = swap_head(model, ending, job.chunk)
    splits = mesh["tensor"].size() > 1
    split = shard_tensors(model, family, head, aliases(model), mesh["tensor"], layout.sequence_parallel) if splits else Split()
    blocks, dtype = stages.blocks(index), DTYPES[job.precision.compute]
    present = blocks_of(model, family)[blocks.start : blocks.stop]
    recompute_blocks(present, job.recompute, first=blocks.start)
    compile_blocks(present, job.compiles)
    known = cut(model, family, where, blocks, dtype, ending.bias, job.device)
    is_last = index == stages.count - 1
    # FSDP casts for every call and drops what it cast: autograd would keep it for each micro-batch in flight.
    is_sharded = layout.fully_shard or mesh["replicate"].size() > 1 or job.precision.compute != "fp32"
    scorer = Scorer(
        model.get_submodule(encoder_path(family)) if encodes_only(where, blocks) else model,
        head if is_last else None,
        family,
        ending.bias if is_last else None,
    )
    stage = Stage(model, scorer, family, stages, where, index, feed)
    if is_sharded:
        if stages.schedule in SPLIT:  # torch looks for the weights again when it comes to their gradients: they have to be whole still
            layout = replace(layout, reshard_after_forward=False)
        fsdp.shard(stage, present, layout, job.precision, fsdp.axes(mesh))
    allocate(model, aliases(model), job.device, parameters_on=job.device)
    return stage, present, known, split


def holders(carried: dict[str, str], model: nn.Module, lists: Sequence[str], where: Places, stages: Stages) -> dict[str, set[int]]:
    """The stages that have each parameter, by its owner's name."""
    held: dict[str, set[int]] = defaultdict(set)
    for name, block in where.of.items():
        held[where.owner.get(name, name)].add(stages.of_block(block))
    for path, start, size in zip(lists, (0, where.stacks[0]), where.stacks, strict=False):
        for below in carried:
            for name, _ in model.get_submodule(f"{path}.0.{below}").named_parameters():
                held[f"{path}.0.{below}.{name}"] |= {stages.of_block(block) for block in range(start, start + size)}
    return held


def _shared(named: Sequence[tuple[str, nn.Parameter]], held: dict[str, set[int]], stages: Stages, mesh: Any) -> list[Shared]:
    """What more than one stage has; every rank makes every group, whether it is in it or not."""
    others = dist.get_world_size() // stages.ranks  # the pipeline axis is the outermost
    groups: dict[tuple[int, ...], Any] = {}
    shared = []
    for name, owners in sorted(held.items()):
        ranks = tuple(sorted({stages.rank(stage) for stage in owners}))
        if len(ranks) > 1 and ranks not in groups:
            groups[ranks], _ = dist.new_subgroups_by_enumeration([[rank * others + k for rank in ranks] for k in range(others)])
        here = tuple(parameter for known, parameter in named if known == name)
        if len(owners) > 1 and here:
            shared.append(Shared(name, here, groups.get(ranks)))
    return shared


@contextmanager
def assembled(
    job: EngineJob, named: Sequence[tuple[str, nn.Parameter]], held: dict[str, set[int]], fused: Mapping[str, Fused], layout: Layout
) -> Iterator[nn.Module]:
    """The whole model on every rank, for as long as this lasts; raises ``Refused`` where it is too large for that."""
    if layout.stays_apart:
        raise Refused(layout.stays_apart)
    stages = layout.stages
    assert stages is not None
    model: Any = copy.deepcopy(job.skeleton.model)
    allocate(model, aliases(model), job.device, job.device)
    fill(model.named_buffers(), job.weights)
    here, group = dict(named), job.mesh.get_group("pipeline")
    with torch.no_grad():
        for name, parameter in named_owners(model):
            owner = stages.rank(min(held[name]))
            if job.mesh.get_local_rank("pipeline") == owner:
                parameter.copy_(_full(here[name], fused.get(name)))
            dist.broadcast(parameter, dist.get_global_rank(group, owner), group=group)
    yield model.eval()


def _full(tensor: Tensor, fused: Fused | None) -> Tensor:
    if not isinstance(tensor, DTensor):
        return tensor
    return fused.whole(tensor) if fused else tensor.full_tensor()
