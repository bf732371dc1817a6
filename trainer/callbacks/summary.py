"""What is said once: before step 1, and at the end."""

from __future__ import annotations

from collections.abc import Mapping

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


def counted(number: float) -> str:
    """A large number with a letter: 1.2 M, 3.4 B."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.0f}"
