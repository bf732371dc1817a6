"""Which YAML files a command line selects, and whether each says only what its schema knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from trainer.command_line.overrides import Findings, set_value, unknown_option
from trainer.command_line.presets import ConfigFile, Folders, is_null, read
from trainer.command_line.suggest import did_you_mean, nearest, nearest_key
from trainer.schema import Leaf, leaves

PRIMARY = "train"
EXPERIMENT = "experiment"
Schemas = Mapping[str, Mapping[str, type]]


@dataclass
class Selection:
    """The files that make up one config.

    Attributes:
        choices: the option of each group, and of experiment where there is one.
        skeleton: the root dataclass with each group's own schema in place.
        files: (file, prefix of its keys) in the order in which they apply.
        origins: where a key that a file sets was last set, FILE:LINE.
    """

    choices: dict[str, str]
    skeleton: Any
    files: list[tuple[ConfigFile, str]] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)


def chain(folders: Folders, group: str, option: str, below: tuple[str, ...] = ()) -> list[ConfigFile]:
    """The file of an option after those that it builds on; empty where a plugin registered it without a file."""
    path = folders.find(group, option)
    if path is None or option in below:
        return []
    file = read(path)
    return [above for parent in file.parents for above in chain(folders, group, parent, (*below, option))] + [file]


def schema_of(folders: Folders, schemas: Schemas, group: str, option: str) -> type | None:
    """The dataclass of an option, or None where its files name none."""
    if registered := folders.registered.get(group, {}).get(option):
        return registered
    names = [file.schema for file in chain(folders, group, option) if file.schema]
    return schemas[group].get(names[-1]) if names else None


def select(folders: Folders, root: type, schemas: Schemas, typed: Mapping[str, str], findings: Findings) -> Selection:
    """Finds the option of every group: the one typed, else the experiment's, else the default.

    Args:
        folders: where options are.
        root: the root dataclass.
        schemas: every group's schemas by name.
        typed: group choices of the command line.
        findings: grows by unknown options and by what the files say wrong.
    """
    primary = read(folders.paths[0] / f"{PRIMARY}.yaml")
    choices = {group: option for group, option, _ in primary.choices if option}
    experiment = _experiment_files(folders, typed, findings)
    for file in experiment:
        for group, option, line in file.choices:
            if _known(folders, schemas, group, option, findings, f" ({file.shown}:{line})"):
                choices[group] = str(option)
    for group, option in typed.items():
        if group != EXPERIMENT and _known(folders, schemas, group, option, findings):
            choices[group] = option
    selection = Selection(choices, root())
    for group, option in choices.items():
        _add_option(selection, group, option, folders, schemas, findings)
    selection.files += [(primary, ""), *((file, "") for file in experiment)]
    if experiment:
        choices[EXPERIMENT] = typed[EXPERIMENT]
    return selection


def _add_option(selection: Selection, group: str, option: str, folders: Folders, schemas: Schemas, findings: Findings) -> None:
    """Adds the files of an option, and its schema's defaults to the skeleton."""
    files = chain(folders, group, option)
    selection.files += [(file, group) for file in files]
    cls = schema_of(folders, schemas, group, option)
    if cls is None:
        cls = next(iter(schemas[group].values()))
        findings.spoiled.add(group)
        options = folders.options(group)
        unknown = [
            unknown_option(group, parent, options, f" ({file.shown})") for file in files for parent in file.parents if parent not in options
        ]
        named = unknown or [
            f"{file.shown}:1 names no schema: begin it with a defaults list, such as defaults: [{options[0]}, _self_]."
            for file in files[-1:]
        ]
        findings.sentences += [sentence for sentence in named if not files[-1].fault]
    setattr(selection.skeleton, group, cls())


def _experiment_files(folders: Folders, typed: Mapping[str, str], findings: Findings) -> list[ConfigFile]:
    option = typed.get(EXPERIMENT)
    if option is None:
        return []
    if option not in (options := folders.options(EXPERIMENT)):
        findings.add(unknown_option(EXPERIMENT, option, options))
        return []
    files = chain(folders, EXPERIMENT, option)
    for file in files:
        if not file.fault and file.package != "_global_":
            findings.add(f"{file.shown}:1 does not begin with the line '# @package _global_', which every experiment needs.")
    return [file for file in files if file.fault or file.package == "_global_"]


def _known(folders: Folders, schemas: Schemas, group: str, option: str | None, findings: Findings, source: str = "") -> bool:
    if group not in schemas:
        near = nearest(group, schemas)
        findings.add(
            f"{group}{source} is not a group; the groups are {', '.join(schemas)}{did_you_mean(near and f'{near}={option}')}", near
        )
        return False
    if option in (options := folders.options(group)):
        return True
    findings.add(unknown_option(group, "null" if option is None else option, options, source), group)
    return False


def check_files(selection: Selection, findings: Findings) -> DictConfig:
    """Checks what each selected file says against the schema.

    Returns:
        The skeleton with every valid value set: what Hydra composes where nothing is wrong.
    """
    tree = OmegaConf.structured(selection.skeleton)
    known = leaves(selection.skeleton)
    for file, prefix in selection.files:
        if file.fault:
            findings.add(file.fault, prefix or None)
        elif file.root is not None:
            check = _FileCheck(file, "" if file.package == "_global_" else prefix, tree, known, findings)
            selection.origins.update(check.mapping(file.root, check.prefix))
    return tree


@dataclasses.dataclass(frozen=True)
class _FileCheck:
    file: ConfigFile
    prefix: str
    tree: DictConfig
    known: dict[str, Leaf]
    findings: Findings

    def mapping(self, node: yaml.MappingNode, section: str) -> Iterator[tuple[str, str]]:
        """Sets every valid value below ``node`` and yields (key, FILE:LINE) of each."""
        lines: dict[str, int] = {}
        for key_node, value in node.value:
            name, place = str(key_node.value), self.file.place(key_node)
            key = f"{section}.{name}" if section else name
            if name in lines:
                self.findings.add(f"{place} sets {key} again, which line {lines[name]} has set: keep one.", key)
                continue
            lines[name] = key_node.start_mark.line + 1
            if key in self.known:
                if self._set(self.known[key], value, place):
                    yield key, place
            elif any(other.startswith(f"{key}.") for other in self.known):
                if isinstance(value, yaml.MappingNode):
                    yield from self.mapping(value, key)
                elif not is_null(value):
                    self.findings.add(f"{key} ({place}) is a section: set its keys below it, one per line.", key)
            else:
                self._refuse(key, place)

    def _set(self, leaf: Leaf, node: yaml.Node, place: str) -> bool:
        problem: str | None
        if leaf.key == "plugins":
            problem = f"{leaf.key} in {place} is not read: plugins run code and are named on the command line only (plugins=[NAME])."
        else:
            text = node.value if isinstance(node, yaml.ScalarNode) else "(a list or section)"
            try:
                value = yaml.SafeLoader("").construct_object(node, deep=True)
                as_written = leaf.type is str and not is_null(node)
                problem = set_value(self.tree, leaf, text if as_written else value, text or "null", f" ({place})")
            except yaml.YAMLError:
                problem = f"{leaf.key} ({place}) has the tag {node.tag}; only plain values are read."
        if problem:
            self.findings.add(problem, leaf.key)
        return problem is None

    def _refuse(self, key: str, place: str) -> None:
        sections = [name for name in dict.fromkeys(k.split(".")[0] for k in self.known) if name]
        meant = nearest_key(key, {k: leaf.names for k, leaf in self.known.items()}) if "." in key else nearest(key, sections)
        shown = meant.removeprefix(f"{self.prefix}.") if meant and self.prefix else meant
        self.findings.add(f"{key} ({place}) is not a key{did_you_mean(shown)}", meant)
