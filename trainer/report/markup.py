"""HTML, element by element: whatever is not markup already is escaped, so that no file can say anything to a browser."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from typing import Any

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_VOID = {"meta", "input", "br"}

Child = Any
"""Markup, text, a number, None, or an iterable of these."""


class Markup(str):
    """Text that is HTML."""

    __slots__ = ()


def tag(name: str, /, *children: Child, **attributes: object) -> Markup:
    """An element.

    Args:
        name: of the element.
        children: escaped unless they are Markup; None is nothing.
        attributes: ``class_`` is ``class`` and ``aria_label`` is ``aria-label``; None and False are left out, True has no value.
    """
    inside = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escaped(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Markup(f"<{name}{inside}>" if name in _VOID else f"<{name}{inside}>{joined(children)}</{name}>")


def joined(children: Child) -> Markup:
    """Children one after the other."""
    if children is None:
        return Markup("")
    if isinstance(children, Markup):
        return children
    if isinstance(children, str | int | float):
        return escaped(str(children))
    return Markup("".join(joined(child) for child in children))


def escaped(text: str) -> Markup:
    """Text as HTML shows it, with a sign for characters that HTML cannot hold."""
    return Markup(escape(_CONTROLS.sub("\ufffd", text)))


def rows(pairs: Iterable[tuple[Child, ...]], head: Iterable[str] = (), class_: str | None = None) -> Markup:
    """A table, which scrolls by itself where it is too wide."""
    heading = tag("tr", [tag("th", name) for name in head])
    body = [tag("tr", [tag("td", cell) for cell in row]) for row in pairs]
    return tag("div", tag("table", tag("thead", heading) if head else None, tag("tbody", body), class_=class_), class_="scroll")
