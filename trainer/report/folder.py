"""A run directory as a report sees it: whatever is missing or cannot be read is left out, and only ``metrics.jsonl`` has to be there."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trainer.errors import DONE, FAILED, REFUSED, STOPPED, STORAGE
from trainer.report.history import History, number

_STATES = {REFUSED: "refused", FAILED: "failed", STOPPED: "stopped", STORAGE: "storage failed"}


@dataclass
class Session:
    """From a start to its end, or to the next start where the end left no word.

    Attributes:
        begun: what was said at its beginning: time, step, strategy ...
        spent: what was said last of its time: step, seconds, phases.
        ended: how it ended; None: without a word.
    """

    begun: dict[str, Any]
    spent: dict[str, Any] = field(default_factory=dict)
    ended: dict[str, Any] | None = None

    @property
    def first(self) -> int:
        """The step before its first."""
        return step_of(self.begun)

    @property
    def layout(self) -> str:
        """Strategy and ranks."""
        return f"{self.begun.get('strategy', '?')} x {self.begun.get('world_size', '?')}"

    @property
    def phases(self) -> dict[str, float]:
        """Seconds by what they were spent with."""
        named = self.spent.get("phases")
        return {str(name): seconds for name, value in named.items() if (seconds := number(value)) > 0} if isinstance(named, dict) else {}

    @property
    def seconds(self) -> float:
        """Of its training loop, as far as it is known."""
        return max(0.0, known) if (known := number(self.spent.get("seconds"))) == known else 0.0


@dataclass
class Run:
    """What is in a run directory.

    Attributes:
        folder: the directory.
        history: its metrics, read.
        config: values by dotted key.
        options: the schema of each group.
        passport: as written.
        exit: code and sentence; None: it goes on, or was killed.
        alive: whether a process holds it.
        sessions: in order.
    """

    folder: Path
    history: History
    config: dict[str, Any]
    options: dict[str, str]
    passport: dict[str, Any]
    exit: dict[str, Any] | None
    alive: bool
    sessions: list[Session]

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.resolve().name or str(self.folder)

    @property
    def steps(self) -> int | None:
        """Of the whole run."""
        steps = self.config.get("train.steps")
        return steps if type(steps) is int else None

    @property
    def state(self) -> tuple[str, str]:
        """A word, and the sentence that goes with it."""
        done = step_of(self.history.last)
        if self.exit is None:
            if self.alive:
                return "running", f"Step {done} is on record."
            return (
                "ended without a word",
                "There is no exit.json: it was killed, or its machine went down. Run the same command again, with its run.dir, to resume.",
            )
        code, sentence = self.exit.get("code"), str(self.exit.get("sentence", ""))
        if code == DONE:
            return ("done" if self.steps is None or done >= self.steps else "stopped"), sentence
        return _STATES.get(code if type(code) is int else -1, "failed"), sentence

    @property
    def device(self) -> str:
        """What it ran on last."""
        name = str(self.passport.get("device", "?"))
        return "CPU" if name == "cpu" else name

    @property
    def layout(self) -> str:
        """Strategy and ranks of the last session."""
        if self.sessions:
            return self.sessions[-1].layout
        strategy = self.passport.get("strategy")
        return f"{strategy.get('name', '?') if isinstance(strategy, dict) else '?'} x {self.passport.get('world_size', '?')}"

    @property
    def unit(self) -> str:
        """What a target is: tokens, samples or labels."""
        return str(self.sessions[-1].begun.get("unit", "tokens")) if self.sessions else "tokens"

    @property
    def seconds(self) -> float:
        """All that was spent in training loops, with what was done twice; the steps' own where nothing else is known."""
        return sum(session.seconds for session in self.sessions) or self.history.seconds


def read_run(folder: Path, history: History | None = None) -> Run:
    """Reads a run directory.

    Args:
        folder: of the run.
        history: what was read of its metrics before.

    Raises:
        OSError: it has no ``metrics.jsonl`` that can be read.
    """
    history = history or History(folder / "metrics.jsonl")
    history.refresh()
    config, options = read_config(folder / "config.yaml")
    ended, sessions = _object(folder / "exit.json"), list(_sessions(folder / "sessions.jsonl"))
    if ended and sessions and sessions[-1].ended is None and ended.get("code") != REFUSED:
        sessions[-1].ended = ended  # said by a rank that outlived the one that keeps sessions.jsonl
    return Run(
        folder=folder,
        history=history,
        config=config,
        options=options,
        passport=_object(folder / "passport.json") or {},
        exit=ended,
        alive=ended is None and _is_held(folder / ".lock"),
        sessions=sessions,
    )


def read_config(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """(Values by dotted key, the schema of each group) of a ``config.yaml``; a plugin's as well, of which only the text is needed."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}, {}
    if not isinstance(tree, dict):
        return {}, {}
    defaults = tree.pop("defaults", None)
    names = [item.removeprefix("/schema/").partition("@")[0] for item in defaults or () if isinstance(item, str) and "/" in item]
    return dict(flat(tree)), dict(name.split("/", 1) for name in names if "/" in name)


def flat(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each value of nested mappings by its dotted key; an empty one is a value."""
    if not isinstance(tree, dict) or not tree:
        yield path, tree
        return
    for name, value in tree.items():
        yield from flat(value, f"{path}.{name}" if path else str(name))


def step_of(record: dict[str, Any]) -> int:
    """The step of a line; 0 where it has none."""
    step = record.get("step")
    return step if type(step) is int else 0


def _object(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _sessions(path: Path) -> Iterator[Session]:
    session: Session | None = None
    for record in _lines(path):
        kind = record.get("kind")
        if kind in ("opened", "began"):
            if session is not None:
                yield session
            session = Session(record) if kind == "began" else None
        elif session is not None and kind == "spent":
            session.spent = record
        elif session is not None and kind == "ended" and session.ended is None:
            session.ended = record
    if session is not None:
        yield session


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            yield record


def _is_held(lock: Path) -> bool:
    """Whether a process holds the lock of a run directory."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(descriptor)
