"""``isotrain report``: draws the report of a run anew, or several runs beside each other. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trainer.checkpoint.files import write_atomically
from trainer.command_line.defaults import default_values
from trainer.command_line.overrides import Override, parse
from trainer.command_line.settings import load_settings
from trainer.commands.config import Report
from trainer.errors import DONE, Refused
from trainer.report.comparison import Comparison
from trainer.report.folder import Run, read_run
from trainer.report.parity import read_steps
from trainer.report.single import report

_LONGEST_NAME = 120


def run(arguments: Sequence[str]) -> int:
    """Writes one file, says which, and returns the exit code.

    Args:
        arguments: run directories, and ``KEY=VALUE``.

    Raises:
        Refused: there is nothing to draw, or nowhere to write it.
    """
    folders, settings = request(arguments)
    runs = [_read(folder) for folder in folders]
    if len(runs) == 1:
        target, content = folders[0] / "report.html", report(runs[0], default_values(runs[0].options))
    else:
        comparison = Comparison.of(runs, [read_steps(one.history.path) for one in runs])
        target, content = _beside(folders), comparison.page()
        _print(comparison)
    target = Path(settings.to) if settings.to else target
    try:
        write_atomically(target, content)
    except OSError as error:
        raise Refused(f"{target} cannot be written ({error.strerror or error}): choose another file with to=FILE.html.") from error
    print(target)
    return DONE


def request(arguments: Sequence[str]) -> tuple[list[Path], Report]:
    """The run directories and the settings that a command line names.

    Raises:
        Refused: with every problem that was found.
    """
    folders = [Path(argument) for argument in arguments if _is_folder(argument)]
    settings = load_settings(Report, [argument for argument in arguments if not _is_folder(argument)])
    if not folders:
        raise Refused("report needs a run directory, or several to compare: isotrain report runs/a runs/b")
    if settings.to is not None and Path(settings.to).exists():
        raise Refused(f"to={settings.to} exists: choose another file, or remove it first.")
    return folders, settings


def _is_folder(argument: str) -> bool:
    """Whether an argument names a folder, there or not, rather than a setting."""
    override: Override = parse([argument])[0]
    return not argument.startswith("-") and (not override.valid or Path(argument).is_dir())


def _read(folder: Path) -> Run:
    try:
        return read_run(folder)
    except OSError as error:
        why = "it holds no metrics.jsonl" if folder.is_dir() else "there is no such folder"
        if folder.is_dir() and not isinstance(error, FileNotFoundError):
            why = f"its metrics.jsonl cannot be read: {error.strerror or error}"
        raise Refused(f"{folder} is not the directory of a run that has begun ({why}): give the run.dir of a run.") from error


def _beside(folders: Sequence[Path]) -> Path:
    """Where a comparison goes by default: beside its first run."""
    names = [folder.resolve().name for folder in folders]
    joined = "-".join(names)
    if len(joined) > _LONGEST_NAME:
        joined = f"{names[0][:_LONGEST_NAME]}-and-{len(names) - 1}-more"
    return folders[0].resolve().parent / f"compare-{joined}.html"


def _print(comparison: Comparison) -> None:
    """A short table, one column per run."""
    console = Console()
    table = Table("", *comparison.names, box=None, header_style="bold", pad_edge=False)
    for name, values in comparison.facts().items():
        table.add_row(f"[cyan]{name}[/]", *(value.replace("[", r"\[") for value in values))
    console.print(table)
