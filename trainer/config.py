"""The root schema: the only file that knows every config group. Free of torch at import."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.callbacks.config import TrackConfig
from trainer.checkpoint.config import CheckpointConfig
from trainer.contradictions import CHECKS
from trainer.data.config import Data, DebianDescriptions, PythonStdlib, Text, Vader
from trainer.data.mix_config import Mix, add_kind
from trainer.data.record_config import Csv, Hub, Jsonl, Parquet
from trainer.errors import Refused
from trainer.model.config import Model, RunSampleConfig
from trainer.model.decoders import Gpt2, Llama
from trainer.model.encoders import Bert, Roberta
from trainer.model.pretrained import EncoderDecoder, FromConfig, Packaged, Pretrained
from trainer.model.seq2seq import T5, Bart
from trainer.objective.causal_lm import CausalLM
from trainer.objective.classification import Classification
from trainer.objective.masked_lm import MaskedLM
from trainer.objective.seq2seq import Seq2Seq
from trainer.objective.span_corruption import SpanCorruption
from trainer.optimizer.config import AdamW
from trainer.precision.config import Precision
from trainer.schema import grow, setting
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

    @staticmethod
    def option(group: str, value: Any) -> str:
        """What a group's config is called in sentences: its option's name, or a plugin's class."""
        return builtin_name(group, value) or type(value).__name__


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
    from trainer.command_line.compose import check_values, compose, compose_by_hydra
    from trainer.command_line.overrides import Findings, parse

    overrides, findings = parse(arguments), Findings()
    plugins.enable([override.value or "" for override in overrides if override.valid and override.key == "plugins"], findings)
    places, known = folders(config_dir), schemas()

    def check(tree: Any) -> None:
        check_values(tree, selection, findings)
        if not OmegaConf.missing_keys(tree):
            findings.add_consequences(contradictions(OmegaConf.to_object(tree), world_size))  # type: ignore[arg-type]

    tree, selection = compose(overrides, places, Config, known, findings)
    if places.has_own:
        tree = compose_by_hydra(tree, overrides, places, known, selection, findings)
    check(tree)
    if not places.has_own and (composed := compose_by_hydra(tree, overrides, places, known, selection, findings)) is not tree:
        check(tree := composed)
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
