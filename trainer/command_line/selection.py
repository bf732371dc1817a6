"""Which YAML files a command line selects, and whether each says only what its schema knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from trainer.command_line.overrides import Findings, set_value, unknown_option
from trainer.command_line.presets import ConfigFile, Folders, is_null, read
from trainer.command_line.suggest import did_you_mean, nearest, nearest_key
from trainer.schema import Leaf, leaves, open_sections

PRIMARY = "train"
EXPERIMENT, DEBUG = "experiment", "debug"
GLOBAL = (EXPERIMENT, DEBUG)
"""Groups without keys of their own, in the order in which they apply: an option is a file that sets keys of all groups."""
Schemas = Mapping[str, Mapping[str, type]]
Explain = Callable[[str, str | None], str | None]
"""``(key, value) -> sentence or None`` for a key that exists, but not here; the sentence begins with the key."""


@dataclass
class Selection:
    """The files that make up one config.

    Attributes:
        choices: the option of each group, and of experiment and debug where there is one.
        skeleton: the root dataclass with each group's own schema in place.
        files: (file, prefix of its keys) in the order in which they apply.
        origins: where a key that a file sets was last set, FILE:LINE.
        debug: files of the debug option, which apply after all others.
        elsewhere: keys that some option has. Debug scales down what is there: one that the chosen option lacks is left alone.
    """

    choices: dict[str, str]
    skeleton: Any
    files: list[tuple[ConfigFile, str]] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)
    debug: list[ConfigFile] = field(default_factory=list)
    elsewhere: frozenset[str] = frozenset()


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
    """Finds the option of every group: the one typed, else that of debug, else the experiment's, else the default.

    Args:
        folders: where options are.
        root: the root dataclass.
        schemas: every group's schemas by name.
        typed: group choices of the command line.
        findings: grows by unknown options and by what the files say wrong.
    """
    primary = read(folders.paths[0] / f"{PRIMARY}.yaml")
    choices = {group: option for group, option, _ in primary.choices if option}
    experiment, debug = (_global_files(folders, name, typed, findings) for name in GLOBAL)
    for file in (*experiment, *debug):
        for group, option, line in file.choices:
            if _known(folders, schemas, group, option, findings, f" ({file.shown}:{line})"):
                choices[group] = str(option)
    for group, option in typed.items():
        if group not in GLOBAL and _known(folders, schemas, group, option, findings):
            choices[group] = option
    selection = Selection(choices, root())
    for group, option in choices.items():
        _add_option(selection, group, option, folders, schemas, findings)
    selection.files += [(primary, ""), *((file, "") for file in experiment)]
    selection.debug = debug
    if debug:
        selection.elsewhere = frozenset(key for group, named in schemas.items() for cls in named.values() for key in leaves(cls(), group))
    choices |= {name: typed[name] for name, files in ((EXPERIMENT, experiment), (DEBUG, debug)) if files}
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


def _global_files(folders: Folders, name: str, typed: Mapping[str, str], findings: Findings) -> list[ConfigFile]:
    option = typed.get(name)
    if option is None:
        return []
    if option not in (options := folders.options(name)):
        findings.add(unknown_option(name, option, options))
        return []
    files = chain(folders, name, option)
    for file in files:
        if not file.fault and file.package != "_global_":
            findings.add(f"{file.shown}:1 does not begin with the line '# @package _global_', which every file of {name} needs.")
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


def check_files(selection: Selection, findings: Findings, explain: Explain | None = None) -> DictConfig:
    """Checks what each selected file says against the schema.

    Args:
        selection: what it was composed from.
        findings: grows.
        explain: for a key that is unknown.

    Returns:
        The skeleton with every valid value set: what Hydra composes where nothing is wrong, debug left out.
    """
    tree = OmegaConf.structured(selection.skeleton)
    for file, prefix in selection.files:
        if file.fault:
            findings.add(file.fault, prefix or None)
        elif file.root is not None:
            check = _FileCheck(file, file.prefix(prefix), tree, selection.skeleton, findings, explain)
            selection.origins.update(check.mapping(file.root, check.prefix))
    return tree


def set_debug(tree: DictConfig, selection: Selection, findings: Findings) -> None:
    """Sets what the debug option's files say, on top of all others; ``tree`` is changed in place."""
    for file in selection.debug:
        if file.fault:
            findings.add(file.fault)
        elif file.root is not None:
            check = _FileCheck(file, "", tree, selection.skeleton, findings, None, selection.elsewhere)
            selection.origins.update(check.mapping(file.root, ""))


@dataclass
class _FileCheck:
    file: ConfigFile
    prefix: str
    tree: DictConfig
    skeleton: dataclasses.InitVar[Any]
    findings: Findings
    explain: Explain | None = None
    elsewhere: frozenset[str] = frozenset()
    known: dict[str, Leaf] = field(init=False)
    named: set[str] = field(init=False)

    def __post_init__(self, skeleton: Any) -> None:
        self.known = leaves(skeleton)
        self.named = {section.key for section in open_sections(skeleton)}

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
            if section in self.named and key_node.tag != "tag:yaml.org,2002:str":
                self.findings.add(f"{key} ({place}) has a name that YAML reads as something else than text: write '{name}'.", key)
            if key in self.known:
                if self._set(self.known[key], value, place):
                    yield key, place
            elif any(other.startswith(f"{key}.") for other in self.known):
                if isinstance(value, yaml.MappingNode):
                    yield from self.mapping(value, key)
                elif not is_null(value):
                    self.findings.add(f"{key} ({place}) is a section: set its keys below it, one per line.", key)
            elif key not in self.elsewhere:
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
        if self.findings.follows(key):
            return
        if self.explain and (sentence := self.explain(key, None)):
            self.findings.add(sentence.replace(key, f"{key} ({place})", 1))
            return
        sections = [name for name in dict.fromkeys(k.split(".")[0] for k in self.known) if name]
        meant = nearest_key(key, {k: leaf.names for k, leaf in self.known.items()}) if "." in key else nearest(key, sections)
        shown = meant.removeprefix(f"{self.prefix}.") if meant and self.prefix else meant
        self.findings.add(f"{key} ({place}) is not a key{did_you_mean(shown)}", meant)
