"""The pages of README.md and docs/ taken at their word: their code blocks, their commands, and the files, keys and names in them."""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from trainer import cli
from trainer.command_line.decided import load
from trainer.command_line.settings import load_settings
from trainer.commands.config import SETTINGS
from trainer.commands.report import request as report_request
from trainer.commands.request import request

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"`([\w/]+\.(?:py|yaml|toml))`")
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


@dataclass(frozen=True)
class Block:
    """A fenced block, and the last file that the paragraph before it names."""

    language: str
    text: str
    file: str | None


def blocks(page: Path) -> list[Block]:
    text, found, end = page.read_text(encoding="utf-8"), [], 0
    for match in _FENCE.finditer(text):
        paragraph = text[end : match.start()].rstrip().rpartition("\n\n")[2]
        named = _FILE.findall(paragraph)
        found.append(Block(match[1], match[2], named[-1] if named else None))
        end = match.end()
    return found


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def spans(page: Path) -> list[str]:
    return _SPAN.findall(prose(page))


def links(page: Path) -> list[str]:
    return [target for target in _LINK.findall(prose(page)) if "://" not in target]


def commands(page: Path) -> list[list[str]]:
    """Every command of the page's shell blocks, as words."""
    text = "\n".join(block.text for block in blocks(page) if block.language == "sh").replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def table(page: Path, first_header: str) -> list[list[str]]:
    """The rows of the table whose header begins with this cell."""
    lines = iter(page.read_text(encoding="utf-8").splitlines())
    next(line for line in lines if line.startswith(f"| {first_header} |"))
    next(lines)
    return list(_rows(lines))


def _rows(lines: Iterator[str]) -> Iterator[list[str]]:
    for line in lines:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


def check_command(words: list[str], made: set[str]) -> None:
    """Passes a command through the gates that it would meet when typed in the repository; raises what they raise.

    Args:
        words: the command.
        made: folders that the page's commands before it write; grows by those that this one writes.
    """
    program, *arguments = words
    if program == "make":
        (target,) = arguments
        assert f"\n{target}: " in (ROOT / "Makefile").read_text(), target
    elif program == "torchrun":
        from torch.distributed.run import parse_args

        launcher = parse_args(arguments)
        _train([launcher.training_script, *launcher.training_script_args], int(launcher.nproc_per_node), made)
    elif program == "srun":  # of a page's own options it is told none, so what follows is the command
        check_command(arguments, made)
    elif program == "accelerate":
        _accelerate(arguments, made)
    elif program == "deepspeed":
        from deepspeed.launcher.runner import parse_args as deepspeed_args

        started = deepspeed_args(arguments)
        _train([started.user_script, *started.user_args], started.num_gpus, made)
    elif program == "python":
        _train(arguments, 1, made)
    else:
        assert program == "isotrain", f"nobody has said how to check {program}"
        command, *overrides = arguments
        assert command in cli.COMMANDS
        if command == "evaluate":
            asked = request(overrides, 1, None)
            _require(asked.settings.checkpoint or asked.config.model.path, made)
        elif command == "report":
            for folder in report_request(overrides)[0]:
                _require(str(folder), made)
        elif command in SETTINGS:
            settings = load_settings(SETTINGS[command], overrides)
            _require(settings.checkpoint, made)
            made.add(getattr(settings, "to", ""))
        else:
            _train(["train.py", *overrides], None if command == "prepare" else 1, made)


def _accelerate(words: list[str], made: set[str]) -> None:
    from tests.configs.accelerate_environment import environment

    assert words[0] == "launch"
    script = words.index("train.py")
    variables, number = environment(*words[1:script])
    _train(words[script:], number, made, variables)


def _train(words: list[str], world_size: int | None, made: set[str], environ: Mapping[str, str] = MappingProxyType({})) -> None:
    script, *arguments = words
    assert script == "train.py" and Path(script).is_file()
    flags, overrides = cli._flags(arguments)
    if flags.help is not None or flags.cfg:
        assert cli.main(["train", *arguments]) == 0
        return
    config, _ = load(overrides, world_size, flags.config_dir, environ)
    for part in (config.data, config.model):
        if path := getattr(part, "path", None):
            _require(path, made)
    if config.run.dir:
        made.add(config.run.dir)


def _require(path: str, made: set[str]) -> None:
    assert Path(path).exists() or any(folder and Path(path).is_relative_to(folder) for folder in made), f"nothing makes {path}"
