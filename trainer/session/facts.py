"""The facts of a run in words: before it starts and when it is over."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import numpy as np
import torch

from trainer.callbacks.summary import counted
from trainer.data.loader import deal
from trainer.session.job import Job
from trainer.session.passport import version
from trainer.trainer import Outcome, Plan


def opening_facts(job: Job, folder: Path, data_size: int, done: int) -> dict[str, str]:
    """What is going to happen, by name.

    Args:
        job: the run.
        folder: ``run.dir``.
        data_size: ranks that see different samples.
        done: steps behind it.
    """
    config, corpus, train = job.config, job.corpus, job.config.train
    micro_batches = deal(np.arange(train.global_batch), 0, data_size, train.micro_batch)
    degrees = config.strategy.degrees(job.launch.world_size)
    tokens = train.global_batch * config.data.sequence_length
    rows = len(corpus.rows("train"))
    where = torch.cuda.get_device_name(job.device) if job.device.type == "cuda" else "CPU"
    held_out = corpus.counts["validation"]["documents"]
    strategy = "single" if degrees.size == 1 and config.strategy.name == "ddp" else config.strategy.name  # alone, nothing is replicated
    return {
        "model": f"{job.skeleton.family.name}, {counted(job.skeleton.num_parameters)} parameters, vocabulary {corpus.vocabulary.size:,}",
        "strategy": f"{strategy} on {job.launch.world_size} x {where}: replicate {degrees.replicate}, shard {degrees.shard}",
        "precision": f"compute {config.precision.compute}; master weights, gradients, moments and loss fp32",
        "batch": f"{train.global_batch} rows x {config.data.sequence_length} = {tokens:,} tokens a step; {len(micro_batches)} x {micro_batches[0].size} rows per rank",
        "data": f"{rows:,} rows ({counted(corpus.counts['train']['tokens'])} tokens) for training, {held_out:,} document{'s' * (held_out != 1)} held out",
        "steps": f"{train.steps:,} = {train.steps * train.global_batch / rows:.2f} epochs = {counted(train.steps * tokens)} tokens"
        + (f"; {done:,} are done" if done else ""),
        "run": f"{folder}  (isotrain {version('isotrain') or 'from a checkout'})",
    }


def closing_facts(folder: Path, outcome: Outcome, plan: Plan, tokens_before: int) -> dict[str, str]:
    """What has happened, by name, and what to type next.

    Args:
        folder: ``run.dir``.
        outcome: of this session.
        plan: of the run.
        tokens_before: targets seen before this session.
    """
    facts = {"steps": f"{outcome.step:,} of {plan.steps:,}"}
    if outcome.last is not None:
        facts["final loss"] = f"{outcome.last.loss:.4f}"
    if outcome.evaluation is not None:
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in outcome.evaluation.metrics.items())
        facts["held out"] = f"{metrics} at step {outcome.evaluation.step:,}"
    facts["speed"] = (
        f"{(outcome.tokens_seen - tokens_before) / max(outcome.seconds, 1e-9):,.0f} tokens/s over {outcome.seconds:,.1f} s, evaluation and saving included"
    )
    facts["metrics"] = str(folder / "metrics.jsonl")
    if outcome.step < plan.steps:
        facts["go on"] = "run the same command again without train.stop_after"
    else:
        facts["generate"] = f"isotrain generate checkpoint={quote(str(folder))}"
        facts["export"] = f"isotrain export checkpoint={quote(str(folder))} to={quote(str(folder / 'model'))}"
    return facts
