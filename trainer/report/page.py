"""What every page has: a head, tiles, tables and a foot; one file that needs no other and no network."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from trainer.report.axes import said
from trainer.report.markup import Child, Markup, tag
from trainer.report.style import SCRIPT, STYLE

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Nothing is ever loaded, whatever a file has said."""
_TONES = {"done": "good", "running": "calm", "stopped": "warn"}
_MOST_IN_A_ROW = 8
PHASE_NAMES = {
    "forward_backward": ("forward and backward", 1),
    "optimizer": ("optimizer", 3),
    "data": ("waiting for data", 2),
    "evaluation": ("evaluation", 4),
    "checkpoints": ("checkpoints", 5),
    "rest": ("everything else", 8),
}
"""What a phase is called, and its colour."""


def page(title: str, *body: Child) -> bytes:
    """A whole file."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width,initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    whole = tag("html", head, tag("body", tag("main", *body), tag("script", Markup(SCRIPT))), lang="en")
    return f"<!doctype html>\n{whole}\n".encode()


def pill(state: str) -> Markup:
    """A run's state in its colour."""
    return tag("span", state, class_=f"pill {_TONES.get(state, 'wrong')}")


def tiles(facts: Iterable[tuple[str, str, str]]) -> Markup:
    """(Name, value, more) of each fact, in one row or two; one without a value is left out."""
    drawn = [tag("div", tag("span", name), tag("b", value), tag("small", more), class_="tile") for name, value, more in facts if value]
    columns = len(drawn) if len(drawn) <= _MOST_IN_A_ROW else -(-len(drawn) // 2)
    return tag("div", drawn, class_="tiles", style=f"--n:{columns}")


def section(title: str, *content: Child) -> Markup:
    """A part under a heading."""
    return tag("section", tag("h2", title), *content)


def curves(drawn: Sequence[Markup | None]) -> Markup:
    """Pictures side by side, and at which step a pointer reads them; a sentence where there is none."""
    pictures = [picture for picture in drawn if picture]
    if not pictures:
        return section("Curves", tag("div", "No step is on record yet.", class_="card dim"))
    return tag("section", tag("h2", "Curves ", tag("span", class_="at dim")), tag("div", pictures, class_="charts"))


def shares(seconds: Mapping[str, float], thin: bool = False) -> Markup | None:
    """A bar of what time was spent with, and, unless it is thin, what its colours mean."""
    total = sum(seconds.values())
    if total <= 0:
        return None
    spent = [(*PHASE_NAMES.get(phase, (phase, 6)), value) for phase, value in _ordered(seconds)]
    told = [f"{name} {said(value, 'seconds')} ({value / total:.1%})" for name, _, value in spent]
    pieces = [
        tag("i", style=f"--c:var(--c{colour});flex:{value / total:.5f} 0 0", title=text)
        for text, (_, colour, value) in zip(told, spent, strict=True)
    ]
    bar = tag("div", pieces, class_="shares thin" if thin else "shares", role="img", aria_label="; ".join(told))
    keys = [
        tag("span", tag("i", style=f"--c:var(--c{colour})"), text, class_="key") for text, (_, colour, _) in zip(told, spent, strict=True)
    ]
    return bar if thin else tag("div", bar, tag("div", keys, class_="legend"))


def footer(*told: str) -> Markup:
    """Where all of it comes from, and when."""
    written = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return tag("footer", [tag("p", text) for text in told if text], tag("p", f"Written {written}."))


def _ordered(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    known = [(phase, seconds[phase]) for phase in PHASE_NAMES if seconds.get(phase, 0) > 0]
    return known + [(phase, value) for phase, value in seconds.items() if phase not in PHASE_NAMES and value > 0]
