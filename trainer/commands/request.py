"""What ``isotrain evaluate`` is asked for: checked before torch is imported, except for what only the checkpoint can tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from trainer.callbacks.config import TrackConfig
from trainer.checkpoint.config import CheckpointConfig
from trainer.command_line import plugins
from trainer.command_line.compose import check_values
from trainer.command_line.overrides import Findings, Override, apply, malformed, parse
from trainer.command_line.selection import GLOBAL, Selection
from trainer.command_line.settings import load_settings
from trainer.command_line.suggest import did_you_mean, nearest
from trainer.commands.config import Evaluate
from trainer.config import Config, RunConfig, contradictions, from_yaml, load, schemas
from trainer.data.config import Data
from trainer.errors import Refused
from trainer.model.config import Model
from trainer.optimizer.config import AdamW
from trainer.schema import leaves

FREE = ("strategy", "precision")
"""The groups of which another option may be chosen: how the model is computed."""


@dataclass(frozen=True)
class Request:
    """A command line of ``isotrain evaluate``.

    Attributes:
        settings: the command's own.
        config: of the run that the command line describes; None: the checkpoint has it.
        meeting: device and timeout, which are needed before a checkpoint is looked at.
        arguments: the overrides that are not the command's own.
        config_dir: a folder with the user's own options.
    """

    settings: Evaluate
    config: Config | None
    meeting: RunConfig
    arguments: Sequence[str]
    config_dir: str | None


def request(arguments: Sequence[str], world_size: int, config_dir: str | None) -> Request:
    """Reads a command line.

    Args:
        arguments: overrides of the command's settings and of a run's.
        world_size: number of ranks.
        config_dir: a folder with the user's own options.

    Raises:
        Refused: with every problem that was found.
    """
    known = leaves(Evaluate())
    settings = load_settings(Evaluate, [override.typed for override in parse(arguments) if override.valid and override.key in known])
    rest = [override.typed for override in parse(arguments) if not (override.valid and override.key in known)]
    _require_new(settings.to)
    if settings.checkpoint is not None:
        needed = ("run.device", "run.timeout")
        meeting = load([override.typed for override in parse(rest) if override.valid and override.key in needed], None).run
        return Request(settings, None, meeting, rest, config_dir)
    config = load(rest, world_size, config_dir)
    if type(config.model).fetch is Model.fetch:
        raise Refused(
            "evaluate needs a trained model: checkpoint=RUN_OR_CHECKPOINT, or model=pretrained model.path=FOLDER with the data=... and "
            "objective=... that it is to be evaluated on."
        )
    return Request(settings, config, config.run, rest, config_dir)


def _require_new(to: str | None) -> None:
    """Says before the work, not after it, that its result cannot be written."""
    if to is None:
        return
    if Path(to).exists():
        raise Refused(f"to={to} exists: choose another file, or remove it first.")
    if not Path(to).parent.is_dir():
        raise Refused(f"to={to}: there is no folder {Path(to).parent}; make it first.")


def config_of(checkpoint: Path, arguments: Sequence[str], world_size: int, config_dir: str | None = None) -> tuple[Config, bool]:
    """The config of a checkpoint's run under another command line: values may differ, what was trained may not.

    Args:
        checkpoint: a folder that has been verified.
        arguments: overrides.
        world_size: number of ranks.
        config_dir: a folder with the user's own options.

    Returns:
        The config, and whether it is for other data than the run's.

    Raises:
        Refused: with every problem that was found.
    """
    overrides, findings = parse(arguments), Findings()
    plugins.enable([override.value or "" for override in overrides if override.valid and override.key == "plugins"], findings)
    if findings.sentences:
        raise Refused(findings.sentences)
    trained = from_yaml((checkpoint / "config.yaml").read_text(encoding="utf-8"))
    # What was for training alone does not bind who measures: not its packages and compiler, nor what goes with the strategy that it had.
    config = replace(
        trained,
        checkpoint=CheckpointConfig(),
        track=TrackConfig(),
        run=replace(trained.run, dir=None, device=None),
        train=replace(trained.train, stop_after=None, compile=False, attention=None),  # the best of the device that is here
        optimizer=AdamW(),
        sample=replace(trained.sample, every_evaluation=False),
    )
    groups: dict[str, list[str]] = {group: [] for group in (*schemas(), *GLOBAL)}
    valid = [override for override in overrides if override.valid]
    chosen = [override for override in valid if override.key in groups]
    findings.sentences += [malformed(override, groups, leaves(config)) for override in overrides if not override.valid]
    config = _choose(config, chosen, config_dir, findings)
    values = []
    for override in valid:
        key, value = override.key, override.value or ""
        if key.startswith("model."):
            findings.add(f"{override.typed} would be another model than the checkpoint's: leave it out.", key)
        elif "." not in key and key not in groups and (near := nearest(key, FREE)):
            findings.add(f"{key} is not a group{did_you_mean(f'{near}={value}')}", key)
        elif key not in groups:
            values.append(override)
    typed = {override.key for override in values}
    own_held_out = f"data.{getattr(config.data, 'held_out_key', None)}"
    if own_held_out in typed and "data.validation_fraction" not in typed:  # the run's share of its own records makes place
        config = replace(config, data=replace(config.data, validation_fraction=Data().validation_fraction))
    tree: Any = OmegaConf.structured(config)
    apply(tree, values, leaves(config), findings)
    check_values(tree, Selection({}, config), findings)
    if not OmegaConf.missing_keys(tree):
        findings.add_consequences(contradictions(OmegaConf.to_object(tree), world_size))  # type: ignore[arg-type]
    if findings.sentences:
        raise Refused(findings.sentences)
    result: Any = OmegaConf.to_object(tree)
    return result, result.data != trained.data


def _choose(config: Config, chosen: Sequence[Override], config_dir: str | None, findings: Findings) -> Config:
    """Puts other options in place where that is allowed."""
    for override in chosen:
        if override.key in FREE:
            try:
                preset = load([override.typed], None, config_dir)
                config = replace(config, **{override.key: getattr(preset, override.key)})
            except Refused as refused:
                findings.sentences += refused.problems
    if fixed := [override for override in chosen if override.key not in FREE]:
        findings.add(
            f"{' and '.join(override.typed for override in fixed)}: a checkpoint is evaluated on its own data, under its own objective; their "
            "keys may be set, such as data.path or data.validation_path. For anything else export it first (isotrain export "
            "checkpoint=CHECKPOINT to=FOLDER), then: isotrain evaluate model=pretrained model.path=FOLDER data=... objective=...",
            *(override.key for override in fixed),
        )
    return config
