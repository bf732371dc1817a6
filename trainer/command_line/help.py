"""What ``--help`` prints: commands, groups and options, and every key with its default and meaning, in plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from omegaconf import OmegaConf

from trainer.command_line.overrides import Findings
from trainer.command_line.presets import Folders, read
from trainer.command_line.sections import name_sections
from trainer.command_line.selection import GLOBAL, Schemas, Selection, chain, check_files, schema_of, select
from trainer.command_line.suggest import did_you_mean, nearest
from trainer.errors import Refused
from trainer.schema import Leaf, leaves, open_sections

WIDTH = 100

TRAIN_USAGE = """\
Usage: isotrain {command} [GROUP=OPTION ...] [KEY=VALUE ...] [--config-dir DIR]
       torchrun --nproc-per-node N train.py [GROUP=OPTION ...] [KEY=VALUE ...]

  --help [GROUP]     this page, or the options and keys of one group
  --config-dir DIR   a folder with your own options, DIR/GROUP/OPTION.yaml, and experiments
  --cfg job          print the resolved config and stop
{own}  --version          print the version
"""

PREPARE_FLAG = "  --show N           print the first N training samples as the model gets them\n"

COMMANDS_USAGE = """\
Usage: isotrain COMMAND [KEY=VALUE ...]

{commands}
  isotrain COMMAND --help   its settings
  isotrain --version        the version
"""


def commands_page(meanings: Mapping[str, str]) -> str:
    """The list of commands."""
    return COMMANDS_USAGE.format(commands=_table([[name, meaning] for name, meaning in meanings.items()]))


def settings_page(command: str, meaning: str, settings: type) -> str:
    """A command's own settings."""
    return f"{meaning}\n\nUsage: isotrain {command} KEY=VALUE ...\n\n{_keys(leaves(settings()).values())}"


def overview(command: str, folders: Folders, root: type, schemas: Schemas) -> str:
    """Usage, the groups with their options, and the keys of the default config."""
    selection, tree = _default(folders, root, schemas)
    rows = []
    for group in (*schemas, *GLOBAL):
        options = [f"{option} (default)" if option == selection.choices.get(group) else option for option in folders.options(group)]
        rows.append([group, ", ".join(options)])
    parts = [
        TRAIN_USAGE.format(command=command, own=PREPARE_FLAG if command == "prepare" else ""),
        "Groups and their options (isotrain train --help GROUP says more):\n",
        _table(rows),
    ]
    known = leaves(selection.skeleton)
    for section in fields(root):
        inside = [leaf for key, leaf in known.items() if key.split(".")[0] == section.name]
        if inside:
            chosen = f" ({section.name}={selection.choices[section.name]})" if section.name in selection.choices else ""
            heading = [f"{section.name}{chosen}: {section.metadata['help']}\n"] if section.name not in known else []
            parts += [*heading, _keys(inside, tree)]
    return "\n".join(parts)


def group_page(group: str, folders: Folders, root: type, schemas: Schemas) -> str:
    """Each option of a group with what it sets, and the keys of each schema with their meanings.

    Raises:
        Refused: no such group or section of keys.
    """
    selection, tree = _default(folders, root, schemas)
    if group in GLOBAL:
        return _global_page(group, folders)
    if group in schemas:
        return _options_page(group, folders, root, schemas, selection)
    section = [leaf for key, leaf in leaves(selection.skeleton).items() if key.split(".")[0] == group]
    if section:
        meaning = next(field for field in fields(root) if field.name == group).metadata["help"]
        return f"{group}: {meaning}\n\n{_keys(section, tree)}"
    names = [*(field.name for field in fields(root)), *GLOBAL]
    raise Refused(f"--help {group}: there is no group {group}; there are {', '.join(names)}{did_you_mean(nearest(group, names))}")


def _options_page(group: str, folders: Folders, root: type, schemas: Schemas, selection: Selection) -> str:
    rows: list[list[str]] = []
    by_schema: dict[type, list[str]] = {}
    for option in folders.options(group):
        cls = schema_of(folders, schemas, group, option)
        if cls is None:
            continue
        by_schema.setdefault(cls, []).append(option)
        sets = _sets(group, option, cls, folders, root)
        default = " (default)" if option == selection.choices[group] else ""
        rows.append([option + default, " ".join(f"{key}={_text(value)}" for key, value in sets.items())])
    meaning = next(field for field in fields(root) if field.name == group).metadata["help"]
    parts = [f"{group}: {meaning}\n", "Options, and what each sets:\n", _table(rows)]
    for cls, options in by_schema.items():
        summary = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
        parts.append(textwrap.fill(f"{', '.join(options)}: {summary}", WIDTH) + "\n")
        example = cls()
        for section in open_sections(example):
            section.grow({"NAME": None})
        parts.append(_keys(leaves(example, group).values()) or "  (no keys)\n")
    return "\n".join(parts)


def _global_page(group: str, folders: Folders) -> str:
    rows = [[option, read(path).about if (path := folders.find(group, option)) else ""] for option in folders.options(group)]
    return f"{group}: none by default; each is a file that selects options and sets keys\n\n{_table(rows)}"


def _sets(group: str, option: str, cls: type, folders: Folders, root: type) -> dict[str, Any]:
    """The values that an option's files set, by the last part of their key."""
    selection = Selection({}, root(**{group: cls()}), [(file, group) for file in chain(folders, group, option)])
    name_sections(selection.skeleton, selection.files, [], Findings())
    tree = check_files(selection, Findings())
    return {key.removeprefix(f"{group}."): OmegaConf.select(tree, key) for key in selection.origins}


def _default(folders: Folders, root: type, schemas: Schemas) -> tuple[Selection, Any]:
    selection = select(folders, root, schemas, {}, Findings())
    return selection, check_files(selection, Findings())


def _keys(known: Iterable[Leaf], tree: Any = None) -> str:
    rows = []
    for leaf in known:
        value = leaf.value if tree is None else OmegaConf.select(tree, leaf.key, throw_on_missing=False, default="???")
        choices = leaf.field.metadata.get("choices")
        meaning = leaf.field.metadata.get("help", "").replace("None:", "null:") + (f" [{', '.join(choices)}]" if choices else "")
        rows.append([leaf.key, "(required)" if value in (None, "???") and leaf.value == "???" else _text(value), meaning])
    return _table(rows)


def _text(value: Any) -> str:
    """A value as the user would type it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value != "" else "''"


def _table(rows: list[list[str]]) -> str:
    """Aligned columns, the last one wrapped to ``WIDTH``."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        head = "  " + "".join(f"{cell:<{width}}  " for cell, width in zip(row, widths, strict=False))
        lines.append(
            textwrap.fill(row[-1], WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False).rstrip()
            or head.rstrip()
        )
    return "\n".join(lines) + "\n"
