"""Plugins: installed code that the user enables by name on the command line, and that then calls ``trainer.register``."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from trainer.command_line.suggest import did_you_mean, nearest

if TYPE_CHECKING:
    from trainer.command_line.overrides import Findings

ENTRY_POINTS = "isotrain.plugins"


def enable(values: Iterable[str], findings: Findings) -> None:
    """Loads and calls the entry points that ``plugins=[NAME, ...]`` names.

    Args:
        values: the text right of each ``plugins=``.
        findings: grows by names that are not installed and by plugins that fail.
    """
    names = [name for value in values if value.startswith("[") for part in value.strip("[]").split(",") if (name := part.strip(" '\""))]
    for name in names:
        point = _installed().get(name)
        if point is None:
            known = ", ".join(_installed()) or "none"
            near = nearest(name, _installed())
            findings.add(
                f"plugins=[{name}]: no installed package offers it as an entry point of group {ENTRY_POINTS}; "
                f"installed: {known}{did_you_mean(near and f'plugins=[{near}]')}"
            )
            continue
        try:
            point.load()()
        except Exception as error:  # a plugin is foreign code: whatever it raises, the user must read which one it was
            findings.add(f"plugins=[{name}]: {point.value} failed: {type(error).__name__}: {error}.")


def versions(names: Iterable[str]) -> dict[str, str]:
    """The distribution and version behind each enabled plugin, for the run's passport."""
    found = {}
    for name in names:
        distribution = _installed()[name].dist
        found[name] = f"{distribution.name} {distribution.version}" if distribution else "unknown"
    return found


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}
