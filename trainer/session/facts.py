"""The facts of a run in words: before it starts and when it is over."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch
from rich.filesize import decimal

from trainer.callbacks.ranks import Ranks
from trainer.callbacks.report import REPORT
from trainer.callbacks.summary import mean_shares, share_texts
from trainer.callbacks.throughput import peak_fact
from trainer.config import Config, builtin_name
from trainer.data.config import Data
from trainer.data.loader import deal
from trainer.data.stream_config import Streamed
from trainer.data.streaming import StreamedCorpus
from trainer.distributed.degrees import AXES, Degrees
from trainer.model.documents import FLEX, VARLEN
from trainer.parallel.stages import SPLIT, bubble
from trainer.report.axes import counted
from trainer.session.job import Job
from trainer.session.passport import version
from trainer.trainer import Outcome, Plan
from trainer.types import Needs

ATTENTION = {
    "eager": "eager",
    "sdpa": "SDPA, under a mask where a row has several documents or must not see its padding",
    VARLEN: "varlen, torch's kernel that is told where documents begin",
    FLEX: "FlexAttention, under a mask of blocks",
}
"""By the name in a transformers config."""

WRITERS = ("causal_lm", "seq2seq")
"""The tasks whose models write text."""


def opening_facts(job: Job, folder: Path, data_size: int, done: int, staged: int = 0) -> dict[str, str]:
    """What is going to happen, by name.

    Args:
        job: the run.
        folder: ``run.dir``.
        data_size: ranks that see different samples.
        done: steps behind it.
        staged: bytes of memory that this rank keeps for checkpoints.
    """
    train = job.config.train
    more = f"; {done:,} are done" if done else ""
    facts = {
        **model_facts(job, fresh=done == 0),
        "batch": _batch(job, data_size),
        **_pipeline(job, data_size),
        **_recomputed(job),
        **_compiled(job),
        **_mfu(job),
        **_data(job, data_size),
        **({"checkpoints": f"written while training goes on, from {decimal(staged)} of memory kept on each rank"} if staged else {}),
        "steps": f"{train.steps:,}{_amount(job)}{more}",
        "run": f"{folder}  (isotrain {version('isotrain') or 'from a checkout'})",
    }
    return facts | {name: f"{facts[name]}, {note}" if name in facts else note for name, note in job.launch.notes.items()}


def model_facts(job: Job, fresh: bool) -> dict[str, str]:
    """The model, what it learns or is judged by, and on what it runs.

    Args:
        job: the run.
        fresh: whether the weights are those that the model begins with, not a checkpoint's.
    """
    config = job.config
    degrees = config.strategy.degrees(job.launch.world_size)
    where = torch.cuda.get_device_name(job.device) if job.device.type == "cuda" else "CPU"
    new = job.weights.new if fresh else []
    facts = {
        "model": f"{job.skeleton.family.name}, {counted(job.skeleton.num_parameters)} parameters, vocabulary {job.corpus.vocabulary.size:,}",
        "new": f"{len(new)} tensors ({_places(new, job.skeleton.head.new)}) drawn from the seed: untrained so far" if new else "",
        "objective": _objective(config.objective),
        "strategy": f"{strategy_name(job)} on {job.launch.world_size} x {where}: {axes(degrees)}",
        "precision": _precision(config, job.device),
        "attention": ATTENTION[job.skeleton.model.config._attn_implementation],
    }
    return {name: fact for name, fact in facts.items() if fact}


def _precision(config: Config, device: torch.device) -> str:
    in_fp32 = "master weights, gradients, moments and loss fp32"
    if config.optimizer.moments != "fp32":
        in_fp32 = f"master weights, gradients and loss fp32; moments {config.optimizer.moments}"
    emulated = device.type == "cpu" and config.precision.compute == "bf16" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    slow = "; slow on this CPU, which has no AVX-512: precision=fp32 takes a fraction of the time" if emulated else ""
    return f"compute {config.precision.compute}; {in_fp32}{slow}"


def strategy_name(job: Job) -> str:
    """What the strategy is called; alone, nothing is replicated."""
    config = job.config
    alone = config.strategy.degrees(job.launch.world_size).size == 1 and config.strategy.name == "ddp"
    return "single" if alone else config.strategy.name


def axes(degrees: Degrees) -> str:
    """How many ranks lie along each axis; the pipeline and the tensor axis only where there is one."""
    told = {axis: size for axis, size in zip(AXES, degrees.shape, strict=True) if axis in ("replicate", "shard") or size > 1}
    return ", ".join(f"{axis} {size}" for axis, size in told.items())


def _places(names: list[str], known: tuple[str, ...]) -> str:
    """The places of tensors in words, such as ``classifier.*``: ``known`` are parts of names, as in ``trainer.model.families.Head``."""
    found = {next((part for part in known if part in f".{name}" or name.startswith(part)), name) for name in names}
    return ", ".join(sorted(f"{part.strip('.')}.*" if part in known else part for part in found))


def _objective(objective: Any) -> str:
    """Its name and settings."""
    settings = ", ".join(f"{name} {str(value).lower() if isinstance(value, bool) else value}" for name, value in asdict(objective).items())
    return (builtin_name("objective", objective) or type(objective).__name__) + (f": {settings}" if settings else "")


def _batch(job: Job, data_size: int) -> str:
    train, windows = job.config.train, job.corpus.needs.fields
    micro_batches = deal(np.arange(train.global_batch), 0, data_size, train.micro_batch)
    if job.corpus.packed:
        size = f"{job.corpus.sequence_length:,} slots = {train.global_batch * job.corpus.sequence_length:,} slots"
    else:
        named = [f"{window.stride:,} {name if len(windows) > 1 else ''}".strip() for name, window in windows.items()]
        size = f"up to {' and '.join(named)} slots"
    return f"{train.global_batch} samples x {size} a step; {len(micro_batches)} x {micro_batches[0].size} samples per rank"


def _recomputed(job: Job) -> dict[str, str]:
    """Which blocks are computed again for their backward."""
    kind, every = job.config.train.activation_checkpointing, job.config.train.activation_checkpointing_every
    which = "each block is" if every == 1 else f"1 of {every} blocks is"
    kept = ", but for matrix products and attention" if kind == "selective" else ""
    return {"memory": f"{which} computed again for its backward{kept}"} if kind else {}


def _compiled(job: Job) -> dict[str, str]:
    """That steps will not be as slow as the first."""
    return {"compile": "each block, while the first steps run, which take longer"} if job.config.train.compile else {}


def _mfu(job: Job) -> dict[str, str]:
    """What the use of the device will be measured by; nothing where its peak is not known."""
    name = torch.cuda.get_device_name(job.device) if job.device.type == "cuda" else "cpu"
    fact = peak_fact(name, job.config.precision.compute)
    return {"mfu": fact} if fact else {}


def _pipeline(job: Job, data_size: int) -> dict[str, str]:
    """Where the model is cut, and how much of a step a rank will wait for others."""
    plan = getattr(job.config.strategy, "plan", None)
    stages = plan(job.skeleton, job.launch.world_size) if plan else None
    if stages is None:
        return {}
    train, each = job.config.train, "+".join(str(len(stages.blocks(stage))) for stage in range(stages.count))
    micro_batches = -(-train.global_batch // (data_size * train.micro_batch))
    share = bubble(stages.schedule, stages.ranks, stages.count // stages.ranks, micro_batches)
    best = " at best" if stages.schedule in SPLIT else ""
    return {"pipeline": f"{stages.count} stages of {each} blocks, {stages.schedule}: {share:.0%} of a step is bubble{best}"}


def _data(job: Job, data_size: int) -> dict[str, str]:
    """The samples, and those of each source of a mix with its share and how often it will be seen."""
    corpus, held_out = job.corpus, job.corpus.counts["validation"]["documents"]
    samples, kind = corpus.samples("train"), "document" if corpus.packed else "record"
    told_held_out = f"{held_out:,} {kind}{'s' * (held_out != 1)} held out"
    if isinstance(corpus, StreamedCorpus):
        return {"data": f"{_streamed(job.config.data, corpus, data_size)}, {told_held_out}"}
    facts = {"data": f"{len(samples):,} samples ({counted(corpus.counts['train']['tokens'])} tokens) for training, {told_held_out}"}
    if len(samples.parts) == 1:
        return facts
    told, share = share_texts(job.config.data.shares()), mean_shares(job.config.data.shares())
    total = job.config.train.steps * job.config.train.global_batch
    for part, own in samples.parts.items():
        tokens = counted(sum(corpus.parts[part]["train"]["tokens"].values()))
        epochs = f"{share[part] * total / len(own):.2f} epochs" if len(own) else "not drawn"
        facts[f"  {part}"] = f"{told[part]} of the samples: {len(own):,} samples ({tokens} tokens), {epochs}"
    return facts


def _streamed(data: Data, corpus: StreamedCorpus, data_size: int) -> str:
    """How a set that is read while training is gone through."""
    assert isinstance(data, Streamed)
    shuffled = f"shuffled {data.shuffle_buffer:,} records at a time" if data.shuffle_buffer else "not shuffled"
    return f"{corpus.shards.root}, read while training: {shuffled}, order fixed for {data_size} data rank{'s' * (data_size != 1)}"


def _amount(job: Job) -> str:
    """What all steps together see; rows that are not full and mixes have no one number."""
    train, samples = job.config.train, job.corpus.samples("train")
    countable = len(samples.parts) == 1 and not isinstance(job.corpus, StreamedCorpus)
    epochs = f" = {train.steps * train.global_batch / len(samples):.2f} epochs" if countable else ""
    tokens = f" = {counted(train.steps * train.global_batch * job.corpus.sequence_length)} tokens" if job.corpus.packed else ""
    return epochs + tokens


def unit(needs: Needs) -> str:
    """What a target is, for speeds: a token, a sample where it has one label, or one of a sample's labels."""
    return {None: "tokens", "classes": "labels"}.get(needs.label, "samples")


def closing_facts(job: Job, folder: Path, outcome: Outcome, plan: Plan, ranks: Ranks, tokens_before: int) -> dict[str, str]:
    """What has happened, by name, and what to type next.

    Args:
        job: the run.
        folder: ``run.dir``.
        outcome: of this session.
        plan: of the run.
        ranks: what each has held and waited for.
        tokens_before: targets seen before this session.
    """
    facts = {"steps": f"{outcome.step:,} of {plan.steps:,}"}
    if outcome.last is not None:
        facts["final loss"] = f"{outcome.last.loss:.4f}"
    if outcome.evaluation is not None:
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in outcome.evaluation.metrics.items())
        facts["held out"] = f"{metrics} at step {outcome.evaluation.step:,}"
    speed = (outcome.tokens_seen - tokens_before) / max(outcome.seconds, 1e-9)
    facts["speed"] = f"{speed:,.0f} {unit(job.corpus.needs)}/s over {outcome.seconds:,.1f} s, evaluation and saving included"
    if shares := [f"{phase.replace('_', '-')} {spent / outcome.seconds:.0%}" for phase, spent in outcome.phases.items() if spent]:
        facts["time"] = ", ".join(shares)
    facts |= ranks.facts()
    facts["metrics"] = str(folder / "metrics.jsonl")
    facts["report"] = str(folder / REPORT)
    if job.config.track.tensorboard:
        facts["curves"] = f"tensorboard --logdir {quote(str(folder / 'tensorboard'))}"
    if outcome.step < plan.steps:
        return facts
    checkpoint = f"checkpoint={quote(str(folder))}"
    if job.skeleton.task in WRITERS:
        facts["generate"] = f"isotrain generate {checkpoint}" + (" prompt='A SOURCE'" if job.skeleton.task == "seq2seq" else "")
    if job.corpus.counts["validation"]["documents"]:
        facts["evaluate"] = f"isotrain evaluate {checkpoint}"
    facts["export"] = f"isotrain export {checkpoint} to={quote(str(folder / 'model'))}"
    return facts
