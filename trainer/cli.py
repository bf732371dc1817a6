"""The command line: finds the command, passes the static gate, and only then imports what does the work."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from trainer.command_line.suggest import did_you_mean, nearest
from trainer.distributed.launch import Launch, read_launch, without_local_rank
from trainer.distributed.lifetime import die_with_torchrun
from trainer.distributed.log import quiet_deepspeed
from trainer.distributed.stop import listen
from trainer.errors import Failure, Refused

COMMANDS = {
    "train": "train, or go on with, one run",
    "prepare": "tokenize and pack the corpus of a run, without training; --show 3 shows samples of it",
    "evaluate": "measure a checkpoint, or a Hugging Face folder, on held-out samples",
    "generate": "write text with a trained model",
    "export": "write a checkpoint as a Hugging Face folder",
    "report": "draw the report of a run anew, or compare runs",
}
EVALUATE_FORMS = """
Two forms, on one rank or under torchrun (torchrun --nproc-per-node 2 -m trainer evaluate ...):

  isotrain evaluate checkpoint=RUN [KEY=VALUE ...] [strategy=OPTION] [precision=OPTION]
      a checkpoint on the held-out samples of its run; KEYs are those of training
  isotrain evaluate model=pretrained model.path=FOLDER data=OPTION objective=OPTION [KEY=VALUE ...]
      any Hugging Face folder or hub id on the held-out samples of any data

train.evaluate_samples says on how many samples. All keys: isotrain train --help
"""
REPORT_FORMS = """
  isotrain report RUN            writes RUN/report.html
  isotrain report RUN RUN ...    compares them: curves, losses step by step, configurations
"""
PATIENCE = 10.0
"""Seconds for which a rank waits to be ended by the launcher, because local rank 0 has reported the same problem."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; a problem is reported in plain words, without a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    launch = Launch()
    quiet_deepspeed()
    try:
        die_with_torchrun(os.environ)
        launch = read_launch(os.environ)
        return _run(without_local_rank(arguments, os.environ), launch)
    except Failure as failure:
        _replace_stale_exit(arguments, launch, failure)
        report(_refusal(failure) if isinstance(failure, Refused) else f"isotrain: {failure}\n", launch, failure.speaker)
        return failure.code


def _run(arguments: list[str], launch: Launch) -> int:
    command, *rest = arguments or ["--help"]
    if command == "--version":
        return _say(_version(), launch)
    if command in ("--help", "-h"):
        from trainer.command_line.help import commands_page

        return _say(commands_page(COMMANDS), launch)
    if command not in COMMANDS:
        near = nearest(command, COMMANDS)
        raise Refused(f"{command} is not a command; the commands are {', '.join(COMMANDS)}{did_you_mean(near and f'isotrain {near}')}")
    flags, overrides = _flags(rest)
    if flags.version:
        return _say(_version(), launch)
    if flags.show is not None and command != "prepare":
        raise Refused(f"--show shows samples of a prepared corpus: isotrain prepare --show {flags.show}")
    if command in ("train", "prepare"):
        return _with_config(command, flags, overrides, launch)
    if command == "evaluate":
        return _evaluate(flags, overrides, launch)
    return _with_settings(command, flags, overrides, launch)


def _with_config(command: str, flags: argparse.Namespace, overrides: list[str], launch: Launch) -> int:
    from trainer import config as schema
    from trainer.command_line.decided import load

    _folder(flags.config_dir)
    if flags.help is not None:
        from trainer.command_line.help import group_page, overview

        parts = (schema.folders(flags.config_dir), schema.Config, schema.schemas())
        return _say(group_page(flags.help, *parts) if flags.help else overview(command, *parts), launch)
    num_shown = _number(flags.show)
    ranks_known = launch.launched or (command == "train" and not flags.cfg)
    config, notes = load(overrides, launch.world_size if ranks_known else None, flags.config_dir, os.environ)
    if flags.cfg:
        return _say(schema.to_yaml(config), launch)
    if command == "prepare":
        from trainer.commands import prepare

        return prepare.run(config, num_shown)
    signals = listen(launch)
    from trainer.run import train

    return train(config, replace(launch, notes=notes), signals)


def _number(shown: str | None) -> int:
    """How many samples ``--show`` asks for; 0 without it."""
    if shown is None:
        return 0
    if not shown.isdecimal() or int(shown) == 0:
        raise Refused(f"--show {shown} is not a number of samples: did you mean --show 3?")
    return int(shown)


def _evaluate(flags: argparse.Namespace, overrides: list[str], launch: Launch) -> int:
    if flags.help is not None:
        return _say(_evaluate_help(flags), launch)
    from trainer.commands.request import request

    asked = request(overrides, launch.world_size, _folder(flags.config_dir))
    from trainer.commands import evaluate

    return evaluate.run(asked, launch)


def _evaluate_help(flags: argparse.Namespace) -> str:
    from trainer.command_line.help import group_page, settings_page
    from trainer.commands.config import SETTINGS

    if flags.help:
        from trainer import config as schema

        return group_page(flags.help, schema.folders(flags.config_dir), schema.Config, schema.schemas())
    return settings_page("evaluate", COMMANDS["evaluate"], SETTINGS["evaluate"]) + EVALUATE_FORMS


def _folder(config_dir: str | None) -> str | None:
    """``--config-dir``, if it is one."""
    if config_dir and not Path(config_dir).is_dir():
        raise Refused(f"--config-dir {config_dir} is not a folder.")
    return config_dir


def _with_settings(command: str, flags: argparse.Namespace, overrides: list[str], launch: Launch) -> int:
    from trainer.command_line.settings import load_settings
    from trainer.commands.config import SETTINGS

    cls = SETTINGS[command]
    if flags.help is not None:
        from trainer.command_line.help import settings_page

        return _say(settings_page(command, COMMANDS[command], cls) + (REPORT_FORMS if command == "report" else ""), launch)
    if command == "report":
        from trainer.commands import report

        return report.run(overrides)
    settings: Any = load_settings(cls, overrides)
    if command == "generate":
        from trainer.commands import generate

        return generate.run(settings)
    from trainer.commands import export

    return export.run(settings)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Refused(f"{message[0].upper()}{message[1:]}.")


def _flags(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The few flags, and everything else in order: overrides and what was meant as such."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", nargs="?", const="", metavar="GROUP")
    parser.add_argument("--config-dir", "-cd", metavar="DIR")
    parser.add_argument("--cfg", "-c", choices=["job"])
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--show", metavar="N")
    return parser.parse_known_args(arguments)


def _say(text: str, launch: Launch) -> int:
    """Prints an answer once per machine."""
    if launch.local_rank == 0:
        try:
            print(text.rstrip("\n"), flush=True)
        except BrokenPipeError:  # the reader, head or less, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"isotrain {version('isotrain')}"
    except PackageNotFoundError:
        return "isotrain (not installed: run from a checkout)"


def _replace_stale_exit(arguments: list[str], launch: Launch, failure: Failure) -> None:
    """Writes a failure that came before the run directory was opened into one that an earlier session left.

    Otherwise its ``exit.json`` would go on telling how that session ended, and a script that reruns after code 4 would never stop.
    """
    named = [value for key, _, value in (argument.lstrip("+").partition("=") for argument in arguments) if key == "run.dir"]
    if failure.speaker is not None or launch.rank > 0 or not named or not (Path(named[-1]) / "checkpoints").is_dir():
        return
    from trainer.run_directory import RunDirectory

    directory = RunDirectory(named[-1])
    with contextlib.suppress(Failure):  # another run is using it, or it cannot be written to: it is not ours to touch
        directory.lock(patience=0)
        directory.write_exit(failure.code, str(failure))
        directory.release()


def _refusal(refused: Refused) -> str:
    number = len(refused.problems)
    lines = [f"isotrain: refused, {number} problem{'s' if number > 1 else ''}:"]
    return "\n".join([*lines, *(f"  - {problem}" for problem in refused.problems), "Nothing was started.", ""])


def report(text: str, launch: Launch, speaker: bool | None = None) -> None:
    """Prints a report once: the rank that all have agreed on, or, before they have met, local rank 0 of each machine.

    Another rank then prints only if the launcher has not ended it after ``PATIENCE``: it has a problem that local rank 0 has not, so it
    prints too, naming itself.
    """
    if speaker is False:
        return
    local_rank = launch.local_rank if launch.launched else _claimed_local_rank()
    if local_rank and speaker is None:
        time.sleep(PATIENCE)
        text = f"rank {os.environ.get('RANK', '?')} (local rank {local_rank}): {text}"
    sys.stderr.write(text)
    sys.stderr.flush()


def _claimed_local_rank() -> int:
    """The local rank of an environment that was refused; 0 where it does not say."""
    claimed = os.environ.get("LOCAL_RANK", "")
    return int(claimed) if claimed.isdecimal() else 0
