"""Command line arguments ``key=value``, read and applied one by one to a closed schema, so that every problem is found."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer.command_line.suggest import did_you_mean, nearest, nearest_key
from trainer.schema import Leaf

_OVERRIDE = re.compile(r"(?P<prefix>\+\+|\+|)(?P<key>[^=]+)=(?P<value>.*)", re.DOTALL)
_WANTED = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "keys and values, such as {a: {b: 1}}",
}
_WANTED_IN_LIST = {"list[int]": "a list of whole numbers, such as [1, 2]", "list[str]": "a list, such as [a, b]"}


@dataclass
class Findings:
    """Problems collected so far.

    Attributes:
        sentences: one per problem.
        spoiled: keys whose value is therefore not what the user meant; what follows from them is not reported.
    """

    sentences: list[str] = field(default_factory=list)
    spoiled: set[str] = field(default_factory=set)

    def add(self, sentence: str, *keys: str | None) -> None:
        """Records a problem and the keys that it spoils."""
        self.sentences.append(sentence)
        self.spoiled.update(key for key in keys if key)

    def follows(self, key: str) -> bool:
        """Whether a key is, or is below, one whose value is not what the user meant."""
        return any(key == spoiled or key.startswith(f"{spoiled}.") for spoiled in self.spoiled)

    def add_consequences(self, sentences: Iterable[str]) -> None:
        """Records what was concluded from values, except from spoiled ones."""
        self.sentences += [sentence for sentence in sentences if not any(key in sentence for key in self.spoiled)]


@dataclass(frozen=True)
class Override:
    """One argument.

    Attributes:
        typed: as the user wrote it, for messages.
        key: dotted key or group name.
        value: the text right of ``=``; None where there was none.
        valid: whether it has the form ``key=value``, so that it may be applied.
    """

    typed: str
    key: str
    value: str | None
    valid: bool


def parse(arguments: Iterable[str]) -> list[Override]:
    """Splits arguments at ``=``; what is no override is kept, marked as not valid, with the key and value that it seems to mean."""
    parsed: list[Override] = []
    for text in arguments:
        last = parsed[-1] if parsed else None
        match = _OVERRIDE.fullmatch(text)
        if match and not text.startswith(("-", "~")):
            parsed.append(Override(text, match["key"].strip(), match["value"], valid=True))
        elif last and not last.valid and last.value is None and not text.startswith("-") and last.key not in ("m", "multirun"):
            parsed[-1] = Override(f"{last.typed} {text}", last.key, text, valid=False)
        else:
            key, equals, value = text.lstrip("-").partition("=")
            parsed.append(Override(text, key.replace("-", "_"), value if equals else None, valid=False))
    return parsed


def malformed(override: Override, groups: Mapping[str, list[str]], leaves: Mapping[str, Leaf]) -> str:
    """The sentence for an argument that has not the form ``key=value``."""
    key, value = override.key, override.value
    if override.typed.split("=")[0] in ("-m", "--multirun"):
        return f"{override.typed} asks for several runs, but one command is one run: start one command per value."
    if key.startswith("~"):
        return f"{override.typed} cannot delete: every key has a value. Set KEY=null where None is allowed, or choose another option."
    if not key:
        return f"{override.typed} names no key: write KEY=VALUE."
    if value is None and (group := next((group for group, options in groups.items() if key in options), None)):
        return f"{override.typed} is not of the form KEY=VALUE{did_you_mean(f'{group}={key}')}"
    meant = key if key in groups or key in leaves else nearest_key(key, {name: leaf.names for name, leaf in leaves.items()})
    value = "VALUE" if value is None else value
    kind = "a flag; settings are written KEY=VALUE" if override.typed.startswith("-") else "of the form KEY=VALUE"
    return f"{override.typed} is not {kind}{did_you_mean(meant and f'{meant}={value}')}"


def set_text(tree: DictConfig, leaf: Leaf, text: str) -> str | None:
    """Sets one value from the text that was typed, as the leaf's type reads it: strings as they are, ``null`` as None.

    Returns:
        A sentence that says why the value is refused, or None.
    """
    try:
        value = text if "${" in text else _read(text, leaf)  # which would follow it; set_value refuses it
    except yaml.YAMLError:
        return _wrong_type(leaf, text, "")
    return set_value(tree, leaf, value, text)


def set_value(tree: DictConfig, leaf: Leaf, value: Any, typed: str, source: str = "") -> str | None:
    """Sets one value.

    Args:
        tree: changed in place; has the leaf's key.
        leaf: the declaration.
        value: plain; text is converted to the leaf's type.
        typed: the value as messages show it.
        source: `` (FILE:LINE)`` for messages.

    Returns:
        A sentence that says why the value is refused, or None.
    """
    if "${" in typed:
        template = " In a template of columns, write \\x24 for a dollar before a brace." if leaf.key.startswith("data.") else ""
        return f"{leaf.key}={typed}{source} holds an interpolation; values are taken as they are written: put the value itself.{template}"
    try:
        OmegaConf.update(tree, leaf.key, value, merge=False)
    except OmegaConfBaseException:
        return _wrong_type(leaf, typed, source)
    return None


def _wrong_type(leaf: Leaf, typed: str, source: str) -> str:
    wanted = _WANTED_IN_LIST.get(str(leaf.field.type)) or _WANTED.get(leaf.type, leaf.type.__name__)
    wanted += " or null" if leaf.optional else ""
    return f"{leaf.key}={typed}{source} is not {wanted}{did_you_mean(_repaired(leaf, typed))}"


def _read(text: str, leaf: Leaf) -> Any:
    if text == "null":
        return None
    if leaf.type is str:
        quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "'\""
        return text[1:-1] if quoted else text
    value = OmegaConf.from_dotlist([f"value={text}"])["value"]
    if value is None or (leaf.type is list) != OmegaConf.is_list(value) or (leaf.type is dict) != OmegaConf.is_dict(value):
        raise yaml.YAMLError("not a value of this type")
    return value


def _repaired(leaf: Leaf, text: str) -> str | None:
    """The override with the value that was probably meant, where that is plain."""
    if leaf.type is list and "[" not in text and (str(leaf.field.type) != "list[int]" or re.fullmatch(r"[0-9, ]+", text)):
        return f"{leaf.key}=[{text}]"
    if leaf.type is int:
        try:
            number = float(text)
        except ValueError:
            return None
        return f"{leaf.key}={int(number)}" if number.is_integer() else None
    return None


def apply(tree: DictConfig, overrides: Iterable[Override], leaves: Mapping[str, Leaf], findings: Findings, explain: Any = None) -> None:
    """Applies value overrides to ``tree``, collecting what is wrong with each.

    Args:
        tree: changed in place.
        overrides: valid ones; group choices left out.
        leaves: the closed schema.
        findings: grows.
        explain: ``(key, value) -> sentence or None`` for a key that exists, but not here.
    """
    seen: dict[str, str] = {}
    for override in overrides:
        key, value = override.key, override.value or ""
        if key in seen and seen[key] != value:
            findings.add(f"{key} is given twice, as {seen[key]} and as {value}: keep one.", key)
        seen[key] = value
        if key in leaves:
            if problem := set_text(tree, leaves[key], value):
                findings.add(problem, key)
        elif not findings.follows(key):
            meant = nearest_key(key, {name: leaf.names for name, leaf in leaves.items()})
            findings.add(_unknown(override, meant, leaves, explain), meant)


def _unknown(override: Override, meant: str | None, leaves: Mapping[str, Leaf], explain: Any) -> str:
    key, value = override.key, override.value
    inside = [leaf_key for leaf_key in leaves if leaf_key.startswith(f"{key}.")]
    if inside:
        return f"{override.typed} sets a whole section: set its keys one by one ({', '.join(inside)})."
    if explain and (sentence := explain(key, value)):
        return sentence
    if meant:
        return f"{key} is not a key{did_you_mean(f'{meant}={value}')}"
    for section in (key.rpartition(".")[0], key.partition(".")[0]):
        if siblings := [leaf_key.removeprefix(f"{section}.") for leaf_key in leaves if section and leaf_key.startswith(f"{section}.")]:
            return f"{key} is not a key; {section} has {', '.join(siblings)}."
    return f"{key} is not a key; --help lists them all."


def unknown_option(group: str, option: str, options: Iterable[str], source: str = "") -> str:
    """The sentence for an option that a group does not have."""
    known = list(options)
    near = nearest(option, known)
    return f"{group}={option}{source} is not an option of {group}, which has {', '.join(known)}{did_you_mean(near and f'{group}={near}')}"
