"""The YAML files of configs/ and of a user's --config-dir: which options exist, and what each file says on which line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

_PACKAGE = re.compile(r"^#\s*@package\s+(\S+)\s*$", re.MULTILINE)
_ABOUT = re.compile(r"\A(?:#\s*@package.*\n)?((?:# .*\n)*)")
_SCHEMA = re.compile(r"^/schema/(?P<group>\w+)/(?P<name>\w+)(@_here_)?$")
_CHOICE = re.compile(r"^(override\s+)?/?(?P<group>\w+)$")


def config_folder() -> Path:
    """The folder of the shipped presets: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    packaged = package / "configs"
    return packaged if packaged.is_dir() else package.parent / "configs"


@dataclass(frozen=True)
class Folders:
    """Where options come from, first match first: the shipped presets, the user's folder, plugins without a YAML.

    Attributes:
        paths: folders that hold one folder per group.
        registered: plugins' dataclasses by group and option.
    """

    paths: tuple[Path, ...]
    registered: Mapping[str, Mapping[str, type]]

    @property
    def has_own(self) -> bool:
        """Whether there are files of the user's. Of the shipped ones a test knows that Hydra makes of them what our check reads in them."""
        return len(self.paths) > 1

    def options(self, group: str) -> list[str]:
        """Every option of a group, sorted."""
        files = {
            file.relative_to(path / group).with_suffix("").as_posix() for path in self.paths for file in (path / group).rglob("*.yaml")
        }
        return sorted(files | set(self.registered.get(group, ())))

    def find(self, group: str, option: str) -> Path | None:
        """The file of an option; None where a plugin registered it without one."""
        candidates = (path / group / f"{option}.yaml" for path in self.paths)
        return next((file for file in candidates if file.is_file()), None)

    def shadowed(self) -> list[Path]:
        """Files of the user's folders that would never be read, because a shipped one has the same name."""
        shipped, *others = self.paths
        return [file for path in others for file in sorted(path.rglob("*.yaml")) if (shipped / file.relative_to(path)).is_file()]


@dataclass
class ConfigFile:
    """One YAML file, read but not yet checked.

    Attributes:
        shown: its path as messages name it.
        package: what its ``# @package`` line says, or None.
        root: the mapping, without ``defaults``.
        defaults: its defaults list as (item, line), an item being a name or (group, option).
        about: the first paragraph of its leading comment.
        fault: why it cannot be read, with file and line.
    """

    shown: str
    package: str | None = None
    root: yaml.MappingNode | None = None
    defaults: list[tuple[str | tuple[str, str | None], int]] = field(default_factory=list)
    about: str = ""
    fault: str | None = None

    def prefix(self, group: str) -> str:
        """What its keys are below: the group whose option it is, or nothing where it speaks of the whole config."""
        return "" if self.package == "_global_" else group

    def place(self, node: yaml.Node) -> str:
        """``FILE:LINE`` of a node."""
        return f"{self.shown}:{node.start_mark.line + 1}"

    @property
    def schema(self) -> str | None:
        """The schema that its defaults list names."""
        matches = (_SCHEMA.match(item) for item, _ in self.defaults if isinstance(item, str))
        return next((match["name"] for match in matches if match), None)

    @property
    def parents(self) -> Iterator[str]:
        """Options of its own group on which it builds."""
        return (item for item, _ in self.defaults if isinstance(item, str) and item != "_self_" and not item.startswith("/"))

    @property
    def choices(self) -> Iterator[tuple[str, str | None, int]]:
        """(group, option, line) of each choice that it makes for a group."""
        return ((*item, line) for item, line in self.defaults if isinstance(item, tuple))


def read(path: Path) -> ConfigFile:
    """Reads one YAML file; a fault is recorded, not raised."""
    file = ConfigFile(shown=_shown(path))
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        file.fault = f"{file.shown} cannot be read: {error}."
        return file
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        tab = "\t" in text.splitlines()[line - 1] if line <= len(text.splitlines()) else False
        reason = "a tab; YAML is indented with spaces" if tab else error.problem
        file.fault = f"{file.shown}:{line} is not valid YAML: {reason}."
        return file
    package = _PACKAGE.search(text)
    file.package = package[1] if package else None
    file.about = " ".join(line.lstrip("# ") for line in _ABOUT.match(text)[1].splitlines())  # type: ignore[index]
    if root is None:
        root = yaml.MappingNode("tag:yaml.org,2002:map", [])
    if not isinstance(root, yaml.MappingNode):
        file.fault = f"{file.shown}:1 is not a mapping of keys to values."
        return file
    pairs = []
    for key, value in root.value:
        if key.value == "defaults" and isinstance(value, yaml.SequenceNode):
            file.defaults = list(_defaults(value))
        else:
            pairs.append((key, value))
    file.root = yaml.MappingNode(root.tag, pairs, root.start_mark, root.end_mark)
    return file


def _shown(path: Path) -> str:
    """Shipped presets as ``configs/...``, wherever they are installed; others as the user typed them."""
    folder = config_folder()
    return f"configs/{path.relative_to(folder).as_posix()}" if path.is_relative_to(folder) else str(path)


def _defaults(node: yaml.SequenceNode) -> Iterator[tuple[str | tuple[str, str | None], int]]:
    for item in node.value:
        line = item.start_mark.line + 1
        if isinstance(item, yaml.ScalarNode):
            yield item.value, line
        elif isinstance(item, yaml.MappingNode):
            for key, value in item.value:
                if match := _CHOICE.match(str(key.value)):
                    yield (match["group"], None if is_null(value) else str(value.value)), line


def is_null(node: yaml.Node) -> bool:
    """Whether a node is a plain null."""
    return node.tag == "tag:yaml.org,2002:null"
