"""What is said once: before step 1, and at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.text import Text


def print_facts(console: Console, title: str, facts: Mapping[str, str]) -> None:
    """Prints a title and two columns; no line is broken, so that paths and commands can be copied."""
    width = max(map(len, facts)) + 2
    console.print(f"\n[bold]{escape(title)}[/]")
    for name, value in facts.items():
        console.print(f"[bold cyan]{escape(name.ljust(width))}[/]{escape(value)}", highlight=False, soft_wrap=True)
    console.print()


def print_sample(console: Console, text: str) -> None:
    """Prints generated text as it is, set off by a rule."""
    console.rule("a sample of the model", style="dim")
    console.print(Text(text.rstrip()), highlight=False)
    console.rule(style="dim")


def print_examples(console: Console, examples: Sequence[tuple[str, str]]) -> None:
    """Prints what was written for held-out sources, each above what should have been."""
    console.rule("written for held-out sources", style="dim")
    for written, reference in examples:
        console.print(Text("model  ", "bold cyan").append(written.strip() or "(nothing)", "default"))
        console.print(Text("truth  ", "bold green").append(reference.strip(), "default"))
    console.rule(style="dim")


def share_texts(shares: dict[str, tuple[float, float]]) -> dict[str, str]:
    """Each part's share of the training stream in percent, at its end too where that is another."""
    texts = {name: tuple(f"{100 * share:.3g} %" for share in pair) for name, pair in _normed(shares).items()}
    return {name: start if start == end else f"{start} to {end}" for name, (start, end) in texts.items()}


def mean_shares(shares: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Each part's share over the whole training, during which it changes in a straight line."""
    return {name: (start + end) / 2 for name, (start, end) in _normed(shares).items()}


def _normed(shares: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    first, last = (sum(pair[place] for pair in shares.values()) for place in (0, 1))
    return {name: (start / first, end / last) for name, (start, end) in shares.items()}
