"""``metrics.jsonl``: one JSON object per line, which a resumed run continues as if it had never stopped."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


class MetricsFile:
    """Appends records. Floats are written so that reading them gives the same bits.

    JSON has no NaN and no infinity: such a value is ``null`` in its place, and ``"nonfinite": {"loss": "nan"}`` says what it
    was (``nan``, ``inf`` or ``-inf``; a nested value by its dotted path).
    """

    def __init__(self, path: Path):
        self.path = path
        self._stream = path.open("ab", buffering=0)
        self._waiting = bytearray()

    @property
    def bytes(self) -> int:
        """The file's length, that of everything appended so far; a checkpoint keeps it for ``cut_back``."""
        return self._stream.tell() + len(self._waiting)

    def append(self, record: dict[str, Any]) -> None:
        """Adds one line; it is in the file after ``sync`` at the latest."""
        try:
            line = _encode(record)
        except ValueError:  # what JSON has no number for; looked for only then, since most records have none
            nonfinite: dict[str, str] = {}
            line = _encode({**_finite(record, "", nonfinite), "nonfinite": nonfinite})
        self._waiting += f"{line}\n".encode()

    def flush(self) -> None:
        """Hands everything appended to the operating system, so that others can read it.

        Raises:
            OSError: the disk is full ...
        """
        while self._waiting:
            written = self._stream.write(self._waiting)
            del self._waiting[: written or 0]

    def sync(self) -> None:
        """Makes everything appended durable.

        Raises:
            OSError: the disk is full ...
        """
        self.flush()
        self.settle()

    def settle(self) -> None:
        """Makes everything durable that has been flushed; from any thread.

        Raises:
            OSError: the disk is full ...
        """
        os.fsync(self._stream.fileno())

    def cut_back(self, to_bytes: int) -> str | None:
        """Drops what was written after a checkpoint, a half-written last line included.

        A file that is shorter than at the checkpoint, or has other lines, does not stop the run: the curve has a gap, the
        training none. What is there is kept up to its last complete line.

        Args:
            to_bytes: ``bytes`` at the checkpoint.

        Returns:
            A sentence to show if the file is not what it was; else None.
        """
        self.flush()
        with self.path.open("rb") as stream:
            head = stream.read(to_bytes)
        kept = head.rfind(b"\n") + 1
        os.truncate(self.path, kept)
        self._stream.seek(0, os.SEEK_END)
        if kept == to_bytes:
            return None
        return f"{self.path} does not hold all that it held at the checkpoint (byte {to_bytes}; complete lines end at byte {kept}): some steps are missing from it."

    def close(self) -> None:
        """Writes out what is waiting and closes the file."""
        self.flush()
        self._stream.close()


def _finite(record: dict[str, Any], path: str, nonfinite: dict[str, str]) -> dict[str, Any]:
    """A copy of ``record`` with null for each non-finite float, whose values are collected in ``nonfinite``."""
    copy = {}
    for key, value in record.items():
        if isinstance(value, dict):
            value = _finite(value, f"{path}{key}.", nonfinite)
        elif isinstance(value, float) and not math.isfinite(value):
            nonfinite[path + key] = str(value)
            value = None
        copy[key] = value
    return copy
