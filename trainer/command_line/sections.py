"""Sections whose names the user makes up, such as the parts of a mix: found in files and arguments before anything is checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from trainer.command_line.overrides import Findings, Override
from trainer.command_line.presets import ConfigFile
from trainer.command_line.suggest import did_you_mean, nearest
from trainer.schema import Sections, grow, leaves, open_sections

_NAME = re.compile(r"[A-Za-z0-9_-]+")


def name_sections(skeleton: Any, files: Iterable[tuple[ConfigFile, str]], overrides: Iterable[Override], findings: Findings) -> None:
    """Gives a config the sections whose names the user makes up, as the selected files and the command line name them.

    Args:
        skeleton: the root config, changed in place.
        files: with the group of each, in the order in which they apply.
        overrides: valid ones; they win over the files.
        findings: grows by names that cannot be, and by sections that do not say, or say wrongly, what they are.
    """
    said = {key: item for file, group in files if file.root for key, *item in _scalars(file, file.root, file.prefix(group))}
    said |= {override.key: [(override.value or "").strip("'\""), ""] for override in overrides}
    grow(skeleton, {key: text for key, (text, _) in said.items()})
    for section in open_sections(skeleton):
        for name in list(section.named):
            inside = {place[1]: item for key, item in said.items() if (place := section.place(key)) and place[0] == name}
            if problem := _problem(section, name, inside):
                findings.add(problem, f"{section.key}.{name}")
            if not name or set(name) & set("[]"):  # OmegaConf could not find it again
                del section.named[name]


def _problem(section: Sections, name: str, said: Mapping[str, Sequence[str]]) -> str | None:
    """What is wrong with a section's name or with what it says that it is; ``said`` has text and place of each key in it."""
    key, by, known = f"{section.key}.{name}", f"{section.key}.{name}.{section.by}", sorted(section.kinds)
    kind, place = said.get(section.by, [None, next((place for _, place in said.values()), "")])
    dotted = next((inside.removesuffix(f".{section.by}") for inside in said if inside.endswith(f".{section.by}")), None)
    if not _NAME.fullmatch(name) or dotted:
        full = f"{name}.{dotted}" if dotted else name
        return f"{section.key}.{full}{place} cannot be the name of a section: only letters, digits, _ and - can be in it."
    if kind is None:
        near = nearest(name, [other for other in section.named if other != name])
        return (
            f"{key}{place} does not say what it is: set {by} to one of {', '.join(known)}{did_you_mean(near and f'{section.key}.{near}')}"
        )
    if kind not in section.kinds:
        near = nearest(kind, known)
        return f"{by}={kind}{place} is not one of {', '.join(known)}{did_you_mean(near and f'{by}={near}')}"
    return None


def _scalars(file: ConfigFile, node: yaml.MappingNode, section: str) -> Iterator[tuple[str, str, str]]:
    """Yields key, text and `` (FILE:LINE)`` of each value of a file; for a section, its key and a dot."""
    for key_node, value in node.value:
        key = f"{section}.{key_node.value}" if section else str(key_node.value)
        if isinstance(value, yaml.MappingNode):
            yield f"{key}.", "", f" ({file.place(key_node)})"
            yield from _scalars(file, value, key)
        elif isinstance(value, yaml.ScalarNode):
            yield key, value.value, f" ({file.place(key_node)})"


def misplaced(skeleton: Any, key: str, value: str | None) -> str | None:
    """The sentence for a key in or around sections with names of the user's own that belongs elsewhere; None: it is none of them."""
    for section in open_sections(skeleton):
        holder = section.key.rpartition(".")[0]
        place = section.place(key)
        if key == section.key or (key.startswith(f"{section.key}.") and not place):
            name = key.removeprefix(section.key).strip(".") or "NAME"
            return f"{key} is a section, not a value: set its keys, such as {section.key}.{name}.{section.by}=KIND."
        if place:
            name, inside = place
            if (common := f"{holder}.{inside}") in leaves(skeleton):
                question = did_you_mean(common if value is None else f"{common}={value}")
                return f"{key} is not set for one of {section.key} but for all together{question}"
            if having := _kinds_with(section, inside):
                kind = section.named[name]
                return f"{key} is not a key of {section.by}={getattr(kind, section.by)}, but of {section.by}={', '.join(having)}."
        elif (inside := key.removeprefix(f"{holder}.")) != key and _kinds_with(section, inside):
            return f"{key} is set for each of {section.key}: write {section.key}.NAME.{inside}."
    return None


def _kinds_with(section: Sections, key: str) -> list[str]:
    return [kind for kind, cls in sorted(section.kinds.items()) if key in leaves(cls())]
