"""The root schema: the only file that knows every config group. Free of torch at import."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.callbacks.config import TrackConfig
from trainer.checkpoint.config import CheckpointConfig
from trainer.data.config import Data, DebianDescriptions, PythonStdlib, Text, Vader
from trainer.data.mix_config import Mix, add_kind
from trainer.data.record_config import Csv, Hub, Jsonl, Parquet
from trainer.errors import Refused
from trainer.model.config import Model, RunSampleConfig
from trainer.model.decoders import Gpt2, Llama
from trainer.model.encoders import Bert, Roberta
from trainer.model.kernels import setting_problem
from trainer.model.pretrained import EncoderDecoder, FromConfig, Packaged, Pretrained
from trainer.model.seq2seq import T5, Bart
from trainer.objective.causal_lm import CausalLM
from trainer.objective.classification import Classification
from trainer.objective.masked_lm import MaskedLM
from trainer.objective.seq2seq import Seq2Seq
from trainer.objective.span_corruption import SpanCorruption
from trainer.optimizer.config import BF16_STEP, AdamW
from trainer.parallel.stages import SPLIT
from trainer.precision.config import Precision
from trainer.schema import grow, leaf_problems, leaves, setting
from trainer.strategy.native import NativeStrategy
from trainer.strategy.zero import ZeroStrategy
from trainer.train_config import TrainConfig

if TYPE_CHECKING:
    from trainer.command_line.presets import Folders


@dataclass
class RunConfig:
    """Where the run lives and how it speaks."""

    dir: str | None = setting(
        None,
        "run directory; rerunning with the same one resumes; None: a fresh runs/NAME-TIME",
        aliases=("output_dir", "save_dir", "log_dir"),
    )
    name: str = setting("run", "NAME of a fresh run directory", aliases=("run_name", "experiment_name"))
    device: str | None = setting(None, "cuda or cpu; None: cuda where there is one", choices=("cuda", "cpu"))
    timeout: float = setting(600.0, "seconds that a collective may wait for a lost or stuck rank", above=0)
    quiet: bool = setting(False, "plain log lines instead of a progress bar")


@dataclass
class Config:
    """A whole run.

    ``strategy``, ``objective`` and ``optimizer`` are ``Any`` for OmegaConf: what they must be is a Protocol (``trainer.protocols``),
    so that a plugin's dataclass needs no base class of ours. The other groups have base classes, which a plugin's must extend.
    """

    train: TrainConfig = setting(TrainConfig, "how long and in which batches")
    run: RunConfig = setting(RunConfig, "where the run lives and how it speaks")
    checkpoint: CheckpointConfig = setting(CheckpointConfig, "when to save and where to resume")
    track: TrackConfig = setting(TrackConfig, "what is kept beside metrics.jsonl: curves, a profile")
    sample: RunSampleConfig = setting(RunSampleConfig, "how text is generated")
    strategy: Any = setting(NativeStrategy, "how ranks divide the work")
    precision: Precision = setting(Precision, "number types")
    objective: Any = setting(CausalLM, "what is learned")
    model: Model = setting(Model, "the transformer")
    data: Data = setting(Data, "the corpus")
    optimizer: Any = setting(AdamW, "update rule, clipping and schedule")
    plugins: list[str] = setting([], "entry points of group isotrain.plugins to load; trusted code, named on the command line only")


GROUPS: dict[str, dict[str, type]] = {
    "strategy": {"native": NativeStrategy, "zero": ZeroStrategy},
    "precision": {"precision": Precision},
    "objective": {
        "causal_lm": CausalLM,
        "masked_lm": MaskedLM,
        "span_corruption": SpanCorruption,
        "seq2seq": Seq2Seq,
        "classification": Classification,
    },
    "model": {
        "llama": Llama,
        "gpt2": Gpt2,
        "bert": Bert,
        "roberta": Roberta,
        "t5": T5,
        "bart": Bart,
        "pretrained": Pretrained,
        "from_config": FromConfig,
        "packaged": Packaged,
        "encoder_decoder": EncoderDecoder,
    },
    "data": {
        "python_stdlib": PythonStdlib,
        "text": Text,
        "jsonl": Jsonl,
        "csv": Csv,
        "parquet": Parquet,
        "hub": Hub,
        "vader": Vader,
        "debian_descriptions": DebianDescriptions,
        "mix": Mix,
    },
    "optimizer": {"adamw": AdamW},
}
"""Every group's own schemas, by the name that a preset's YAML refers to as ``/schema/GROUP/NAME``."""

REGISTERED: dict[str, dict[str, type]] = {group: {} for group in GROUPS}
"""Plugins' schemas; each is also an option of its name."""


def register(group: str, name: str, config: type) -> None:
    """Adds an option to a group: ``GROUP=NAME`` selects it, its fields are its keys.

    Args:
        group: a config group.
        name: the option; must be new.
        config: a dataclass with a default for every field (``trainer.schema.setting``), extending the group's base class if it has one.

    Raises:
        ValueError: no such group, the name is taken, or ``config`` is no such dataclass.
    """
    base = {"precision": Precision, "model": Model, "data": Data}.get(group, object)
    if group not in GROUPS:
        raise ValueError(f"register({group!r}, {name!r}): the groups are {', '.join(GROUPS)}.")
    if REGISTERED[group].get(name, config) is not config or folders().find(group, name):
        raise ValueError(f"register({group!r}, {name!r}): {group} has an option {name} already; choose another name.")
    if not (isinstance(config, type) and dataclasses.is_dataclass(config) and issubclass(config, base)):
        kind = "a dataclass" if base is object else f"a dataclass that extends {base.__module__}.{base.__qualname__}"
        raise ValueError(f"register({group!r}, {name!r}): {config!r} is not {kind}.")
    REGISTERED[group][name] = config
    if issubclass(config, Data):
        add_kind(name, config)


def schemas() -> dict[str, dict[str, type]]:
    """Every group's schemas by name, plugins' included."""
    return {group: own | REGISTERED[group] for group, own in GROUPS.items()}


def folders(config_dir: str | Path | None = None) -> Folders:
    """Where options come from: the shipped presets, ``--config-dir``, and plugins."""
    from trainer.command_line.presets import Folders, config_folder

    return Folders((config_folder(), *([Path(config_dir)] if config_dir else [])), REGISTERED)


def builtin_name(group: str, value: Any) -> str | None:
    """The schema name of a group's config, such as ``llama``; None for a plugin's, which answers for itself."""
    return next((name for name, cls in GROUPS[group].items() if type(value) is cls), None)


def load(arguments: Sequence[str], world_size: int | None, config_dir: str | Path | None = None) -> Config:
    """Reads and checks a whole command line: the static gate. No torch is imported.

    Args:
        arguments: overrides, ``KEY=VALUE`` and ``GROUP=OPTION``.
        world_size: number of ranks, or None where they are not known yet (degrees are then not checked).
        config_dir: a folder with the user's own options and experiments.

    Raises:
        Refused: with every problem that was found.
    """
    from omegaconf import OmegaConf

    from trainer.command_line import plugins
    from trainer.command_line.compose import check_values, compose
    from trainer.command_line.overrides import Findings, parse

    overrides, findings = parse(arguments), Findings()
    plugins.enable([override.value or "" for override in overrides if override.valid and override.key == "plugins"], findings)
    tree, selection = compose(overrides, folders(config_dir), Config, schemas(), findings)
    check_values(tree, selection, findings)
    if not OmegaConf.missing_keys(tree):
        findings.add_consequences(contradictions(OmegaConf.to_object(tree), world_size))  # type: ignore[arg-type]
    if findings.sentences:
        raise Refused(findings.sentences)
    return OmegaConf.to_object(tree)  # type: ignore[return-value]


def to_yaml(config: Config) -> str:
    """The resolved config as YAML that ``from_yaml`` reads back to the same; its defaults list names each group's schema."""
    from omegaconf import OmegaConf

    named = {group: next(name for name, cls in known.items() if type(getattr(config, group)) is cls) for group, known in schemas().items()}
    lines = ["defaults:", *(f"- /schema/{group}/{name}@{group}" for group, name in named.items()), "- _self_", ""]
    return "\n".join(lines) + OmegaConf.to_yaml(OmegaConf.structured(config))


def from_yaml(text: str) -> Config:
    """The config that ``to_yaml`` wrote. Loads no plugin: a file never runs code.

    Raises:
        Refused: the text is not such a config, or its plugin has not been registered.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        if "${" in text:
            raise ValueError("it holds an interpolation")
        tree: Any = OmegaConf.create(text)
        named = dict(item.removeprefix("/schema/").split("@")[0].split("/") for item in tree.pop("defaults") if item != "_self_")
        skeleton = Config(**{group: schemas()[group][name]() for group, name in named.items()})
        grow(skeleton, dict(_said(tree)))
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(skeleton), tree))  # type: ignore[return-value]
    except (OmegaConfBaseException, YAMLError, ValueError, KeyError, AttributeError) as error:
        raise Refused(f"This is not the config of a run of this version and its plugins: {error}.") from error


def _said(tree: Any, section: str = "") -> Iterator[tuple[str, str]]:
    """Every value of a tree as text, by its dotted key."""
    for name, value in tree.items():
        key = f"{section}.{name}" if section else str(name)
        yield from _said(value, key) if isinstance(value, Mapping) else [(key, str(value))]


def contradictions(config: Config, world_size: int | None) -> Iterator[str]:
    """What several groups together make impossible, one sentence each."""
    for check in CHECKS:
        yield from check(config)
    objective, family = builtin_name("objective", config.objective), builtin_name("model", config.model)
    family = None if family in ("pretrained", "from_config", "packaged") else family
    yield from config.strategy.check(world_size, config.precision.compute, objective, family)


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
        name = builtin_name("objective", config.objective) or type(config.objective).__name__
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
    data, name = config.data, builtin_name("objective", config.objective) or type(config.objective).__name__
    needs = config.objective.needs(data.sequence_length, data.target_length)
    for key, source in data.sources().items():
        if lacks := source.lacks(needs):
            choice = "data" if source is data else f"{key}.kind"
            keys = [f"{key}.{field}" for field in (*needs.fields, *(["label"] if needs.label else []))]
            yield (
                f"objective={name} reads {lacks}, which {choice}={builtin_name('data', source) or type(source).__name__} does not have: "
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
)
"""What no single field can know; the strategy's own checks come after."""
