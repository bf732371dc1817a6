"""What several groups of a config together make impossible: what no single field can know. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.callbacks.config import TrackConfig
from trainer.model.kernels import setting_problem
from trainer.optimizer.config import BF16_STEP
from trainer.parallel.stages import SPLIT
from trainer.schema import leaf_problems, leaves
from trainer.strategy.zero import ZeroStrategy
from trainer.train_config import TrainConfig

if TYPE_CHECKING:
    from trainer.config import Config


def _schedule_fits(config: Config) -> Iterator[str]:
    steps, optimizer = config.train.steps, config.optimizer
    warmup = getattr(optimizer, "warmup_steps", None) or 0
    if warmup >= steps:
        yield f"optimizer.warmup_steps={warmup} leaves no step of train.steps={steps} at the full learning rate: lower it to {steps // 10}."
    elif getattr(optimizer, "schedule", None) == "wsd" and warmup + round(optimizer.decay_fraction * steps) > steps:
        yield (
            f"optimizer.warmup_steps={warmup} and optimizer.decay_fraction={optimizer.decay_fraction} together exceed "
            f"train.steps={steps}: lower one of them."
        )


def _recompute_fits(config: Config) -> Iterator[str]:
    every, schedule = config.train.activation_checkpointing_every, getattr(config.strategy, "schedule", None)
    if config.train.activation_checkpointing == "selective" and schedule in SPLIT:
        yield (
            f"train.activation_checkpointing=selective keeps what it chose for one backward, and strategy.schedule={schedule} goes back "
            "through a block twice: use full, or another schedule."
        )
    if every > 1 and config.train.activation_checkpointing is None:
        yield f"train.activation_checkpointing_every={every} has no effect without train.activation_checkpointing: add =full, or leave it out."


def _compile_fits(config: Config) -> Iterator[str]:
    schedule = getattr(config.strategy, "schedule", None)
    if not config.train.compile:
        return
    if isinstance(config.strategy, ZeroStrategy):
        yield f"train.compile=true does not go with strategy={config.strategy.name}, whose hooks work inside of blocks: use fsdp, or leave it out."
    if getattr(config.strategy, "sequence_parallel", False):
        yield "train.compile=true is not proven with strategy.sequence_parallel=true: set one of them to false."
    if schedule in SPLIT:
        yield f"train.compile=true goes back through a block once, strategy.schedule={schedule} twice: use another schedule, or leave it out."


def _moments_fit(config: Config) -> Iterator[str]:
    if getattr(config.optimizer, "moments", "fp32") == "fp32":
        return
    if isinstance(config.strategy, ZeroStrategy):
        yield f"optimizer.moments=bf16 does not go with strategy={config.strategy.name}, which keeps them in fp32: use fsdp, or leave it out."
    for name in ("beta1", "beta2"):
        beta = getattr(config.optimizer, name)
        if 1 - beta < BF16_STEP:
            yield (
                f"optimizer.{name}={beta:g} takes less off a moment in a step than bf16 can tell, so that it would never shrink: "
                f"lower it to {1 - BF16_STEP:.3f} or less, or leave optimizer.moments out."
            )


def _head_fits(config: Config) -> Iterator[str]:
    chunk, default = config.train.cross_entropy_chunk, TrainConfig().cross_entropy_chunk
    if config.train.cross_entropy == "dense":
        if chunk != default:
            yield f"train.cross_entropy_chunk={chunk} has no effect without train.cross_entropy=chunked: add that, or leave it out."
    elif config.objective.task == "classification":
        yield "train.cross_entropy=chunked has no effect on a classifier, whose head has no vocabulary: leave it out."


def _attention_fits(config: Config) -> Iterator[str]:
    asked, recompute = config.train.attention, config.train.activation_checkpointing
    if asked and (why := setting_problem(asked, config.model.attention, config.precision.compute, recompute, config.run.device)):
        yield f"train.attention={asked}: {why}."


def _stop_fits(config: Config) -> Iterator[str]:
    steps, stop = config.train.steps, config.train.stop_after
    if stop is not None and stop > steps:
        yield f"train.stop_after={stop} is after the end, train.steps={steps}: lower it, or leave it out."


def _rows_fit(config: Config) -> Iterator[str]:
    length, positions = config.data.sequence_length, getattr(config.model, "max_positions", None)
    if positions is not None and length > positions:
        yield f"data.sequence_length={length} exceeds model.max_positions={positions}: lower the first or raise the second."


def _something_to_evaluate(config: Config) -> Iterator[str]:
    if config.train.evaluate_every is not None and not config.data.holds_out:
        yield f"train.evaluate_every={config.train.evaluate_every} has nothing to evaluate, because data.validation_fraction=0: raise it."


def _something_to_sample(config: Config) -> Iterator[str]:
    if not config.sample.every_evaluation:
        return
    if getattr(config.objective, "task", "causal_lm") != "causal_lm":
        name = config.option("objective", config.objective)
        yield (
            f"sample.every_evaluation=true lets a decoder write, and objective={name} trains none: leave it out "
            "(a seq2seq model writes for held-out sources, train.evaluate_generate)."
        )
    elif config.train.evaluate_every is None:
        yield "sample.every_evaluation=true has no effect without train.evaluate_every: add train.evaluate_every=100, or leave it out."


def _data_is_sound(config: Config) -> Iterator[str]:
    yield from config.data.problems()
    parts = (config.objective, config.data)
    if any(problem for part in parts for leaf in leaves(part).values() for problem in leaf_problems(leaf)):
        return  # what is needed follows from values that are refused by themselves
    data, name = config.data, config.option("objective", config.objective)
    needs = config.objective.needs(data.sequence_length, data.target_length)
    for key, source in data.sources().items():
        if lacks := source.lacks(needs):
            choice = "data" if source is data else f"{key}.kind"
            keys = [f"{key}.{field}" for field in (*needs.fields, *(["label"] if needs.label else []))]
            yield (
                f"objective={name} reads {lacks}, which {choice}={config.option('data', source)} does not have: "
                f"choose {choice}=jsonl, csv, parquet or hub, and name the column{'s' if len(keys) > 1 else ''} with {' and '.join(keys)}."
            )
    if data.target_length is not None and "target" not in needs.fields:
        yield f"data.target_length={data.target_length} has no effect, because objective={name} reads no target: leave it out."
    if data.packing and not needs.packs:
        yield f"data.packing=true does not go with objective={name}, which takes one record per row: leave data.packing out."
    elif needs.packs if data.packing is None else data.packing:
        if data.group_by_length:
            yield "data.group_by_length=true has no effect on packed rows, which are full: add data.packing=false, or leave it out."
        if data.too_long != "truncate":
            yield (
                f"data.too_long={data.too_long} has no effect on packed rows, where a long record goes on in the next row: "
                "add data.packing=false, or leave it out."
            )


def _background_fits(config: Config) -> Iterator[str]:
    swapped = [name for name in ("offload_optimizer", "offload_parameters") if getattr(config.strategy, name, None) == "nvme"]
    if config.checkpoint.background and swapped:
        yield (
            f"checkpoint.background=true keeps a copy of each rank's state in memory, which strategy.{swapped[0]}=nvme keeps on a disk "
            "because it does not fit: set checkpoint.background=false, or offload to cpu."
        )


def _resume_exists(config: Config) -> Iterator[str]:
    from trainer.command_line.suggest import did_you_mean, nearest

    words, resume = ("latest", "never"), config.checkpoint.resume
    if resume not in words and not Path(resume).is_dir():
        near = nearest(resume, words)
        yield f"checkpoint.resume={resume} is neither latest, never nor a folder{did_you_mean(near and f'checkpoint.resume={near}')}"


def _parts_are_sound(config: Config) -> Iterator[str]:
    yield from config.model.problems()
    yield from getattr(config.objective, "problems", list)()


def _trackers_are_there(config: Config) -> Iterator[str]:
    yield from config.track.missing_packages()


def _profile_fits(config: Config) -> Iterator[str]:
    first, last = config.track.profile_from, config.train.stop_after or config.train.steps
    if first is not None and first > last:
        yield f"track.profile_from={first} is after the last step, {last}: lower it, or leave it out."
    elif first is None and config.track.profile_steps != TrackConfig().profile_steps:
        yield f"track.profile_steps={config.track.profile_steps} has no effect without track.profile_from: add it, or leave this one out."


def _wandb_is_meant(config: Config) -> Iterator[str]:
    default = TrackConfig()
    for name in ("project", "entity", "name"):
        if not config.track.wandb and getattr(config.track, name) != getattr(default, name):
            yield f"track.{name} has no effect without track.wandb=true: add that, or leave it out."


CHECKS: tuple[Callable[[Config], Iterator[str]], ...] = (
    _schedule_fits,
    _stop_fits,
    _recompute_fits,
    _moments_fit,
    _head_fits,
    _compile_fits,
    _attention_fits,
    _rows_fit,
    _something_to_evaluate,
    _something_to_sample,
    _data_is_sound,
    _background_fits,
    _resume_exists,
    _parts_are_sound,
    _trackers_are_there,
    _profile_fits,
    _wandb_is_meant,
)
"""What no single field can know; the strategy's own checks come after."""
