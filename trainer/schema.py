"""How a config field is declared and checked: its meaning, its range and its names elsewhere, beside its default."""

import dataclasses
import math
import operator
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from trainer.command_line.suggest import did_you_mean, nearest


def setting(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | None = None,
    aliases: tuple[str, ...] = (),
    sections: tuple[type, str, Mapping[str, type]] | None = None,
) -> Any:
    """Declares one field of a config dataclass.

    Args:
        default: the value when nobody sets it. Lists and dicts are copied for each instance.
        help: its meaning, with units and what None means; printed by ``--help GROUP``.
        minimum: inclusive lower bound of a number.
        above: exclusive lower bound.
        maximum: inclusive upper bound.
        below: exclusive upper bound.
        choices: the only strings allowed.
        aliases: what other frameworks call it; used for "did you mean".
        sections: of a dict: it holds sections under names of the user's own; ``base``, ``by`` and ``kinds`` of ``Sections``.
    """
    metadata = {
        "help": help,
        "minimum": minimum,
        "above": above,
        "maximum": maximum,
        "below": below,
        "choices": choices,
        "aliases": aliases,
        "sections": sections,
    }
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Sections:
    """A field that holds sections under names of the user's own, each typed by what it says itself.

    Attributes:
        key: dotted, from the root.
        named: the sections that there are.
        base: the dataclass of a section that has not said what it is; all kinds extend it.
        by: the key of a section that says it.
        kinds: the dataclass for each of its values.
    """

    key: str
    named: dict[str, Any]
    base: type
    by: str
    kinds: Mapping[str, type]

    def place(self, key: str) -> tuple[str, str] | None:
        """The name of the section to which a dotted key would belong, and the key inside it; None: it is not below ``key.NAME``."""
        name, dot, inside = key.removeprefix(f"{self.key}.").partition(".")
        return (name, inside) if dot and key.startswith(f"{self.key}.") else None

    def grow(self, kinds: Mapping[str, str | None]) -> None:
        """Adds a section of its kind's defaults for each name; of the base's where the kind is unknown. The order is that of the names."""
        grown = self.named | {name: self.kinds.get(kind or "", self.base)() for name, kind in kinds.items()}
        self.named.clear()
        self.named.update(sorted(grown.items()))


def open_sections(config: Any, path: str = "") -> Iterator[Sections]:
    """Every field of a config dataclass that was declared to hold sections."""
    for field in dataclasses.fields(config):
        key, value = f"{path}.{field.name}" if path else field.name, getattr(config, field.name)
        if declared := field.metadata.get("sections"):
            yield Sections(key, value, *declared)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from open_sections(value, key)


def grow(config: Any, given: Mapping[str, str]) -> None:
    """Adds the sections that dotted keys name.

    Args:
        config: changed in place.
        given: the value of each key.
    """
    for section in open_sections(config):
        places = {key: place for key in given if (place := section.place(key))}
        kinds = {name: given[key] for key, (name, inside) in places.items() if inside == section.by}
        section.grow({name: kinds.get(name) for name, _ in places.values()})


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One config value that a user can set.

    Attributes:
        key: dotted, from the root.
        field: its declaration.
        type: int, float, bool, str or list, without its None.
        optional: whether it may be None.
        value: what it is now.
    """

    key: str
    field: dataclasses.Field
    type: type
    optional: bool
    value: Any

    @property
    def names(self) -> tuple[str, ...]:
        """Its last part, and what other frameworks call it."""
        return (self.field.name, *self.field.metadata.get("aliases", ()))


def leaves(config: Any, path: str = "") -> dict[str, Leaf]:
    """Every leaf of a config dataclass by its dotted key, in the order of declaration. Sections without a name have none."""
    found: dict[str, Leaf] = {}
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        key = f"{path}.{field.name}" if path else field.name
        value = getattr(config, field.name)
        if field.metadata.get("sections"):
            for name, section in value.items():
                found |= leaves(section, f"{key}.{name}")
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            found |= leaves(value, key)
        else:
            found[key] = Leaf(key, field, *_plain_type(hints[field.name]), value)
    return found


def _plain_type(hint: Any) -> tuple[type, bool]:
    """The type without None and without parameters, and whether None was allowed."""
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else (hint,)
    plain = next(member for member in members if member is not type(None))
    return typing.get_origin(plain) or plain, type(None) in members


def leaf_problems(leaf: Leaf, source: str = "") -> Iterator[str]:
    """What is wrong with one value, a sentence each; ``source`` is `` (FILE:LINE)`` where a file set it."""
    declared, key = leaf.field.metadata, leaf.key
    for item in leaf.value if isinstance(leaf.value, list | tuple) else [leaf.value]:
        if isinstance(item, bool) or item is None:
            continue
        if isinstance(item, int | float):
            if not math.isfinite(item):
                yield f"{key}={item}{source} is not a finite number."
            elif (wanted := _broken_range(declared, item)) is not None:
                yield f"{key}={item}{source} is out of range: it must be {wanted}."
        elif isinstance(item, str) and declared.get("choices") and item not in declared["choices"]:
            near = nearest(item, declared["choices"])
            yield f"{key}={item}{source} is not one of {', '.join(declared['choices'])}{did_you_mean(near and f'{key}={near}')}"


_BOUNDS = {
    "minimum": ("at least", operator.ge),
    "above": ("greater than", operator.gt),
    "maximum": ("at most", operator.le),
    "below": ("less than", operator.lt),
}


def _broken_range(declared: Mapping[str, Any], item: float) -> str | None:
    """The whole declared range in words when ``item`` lies outside it, else None."""
    bounds = [(words, holds, declared[name]) for name, (words, holds) in _BOUNDS.items() if declared.get(name) is not None]
    if all(holds(item, bound) for _, holds, bound in bounds):
        return None
    return " and ".join(f"{words} {bound}" for words, _, bound in bounds)
