"""Isotrain: one config, any parallelism, the same loss."""

from collections.abc import Sequence


def register(group: str, name: str, config: type) -> None:
    """Adds an option to a config group; see ``trainer.config.register``."""
    from trainer.config import register as add

    add(group, name, config)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``train``: what a user's own three-line train.py calls after ``register``. Returns the exit code."""
    import sys

    from trainer.cli import main as run

    return run(["train", *(sys.argv[1:] if argv is None else argv)])
