"""The settings of a command without groups: one closed dataclass, set from the command line like a run's config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

from omegaconf import OmegaConf

from trainer.command_line.compose import check_values
from trainer.command_line.overrides import Findings, apply, malformed, parse
from trainer.command_line.selection import Selection
from trainer.errors import Refused
from trainer.schema import leaves

Settings = TypeVar("Settings")


def load_settings(cls: type[Settings], arguments: Sequence[str]) -> Settings:
    """Reads and checks a command's arguments.

    Args:
        cls: the command's dataclass.
        arguments: ``KEY=VALUE`` each.

    Raises:
        Refused: with every problem that was found.
    """
    skeleton, findings, overrides = cls(), Findings(), parse(arguments)
    known, tree = leaves(skeleton), OmegaConf.structured(skeleton)
    for override in overrides:
        if not override.valid:
            findings.add(malformed(override, {}, known))
    apply(tree, [override for override in overrides if override.valid], known, findings)
    check_values(tree, Selection({}, skeleton), findings)
    if findings.sentences:
        raise Refused(findings.sentences)
    return cast(Settings, OmegaConf.to_object(tree))
