"""What a prepared corpus depends on, as one hash; contents that have not changed are not read again."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

_SETTLED_NS = 2_000_000_000
"""A file changed less than this ago may change again within the clock's resolution, so its digest is not remembered."""


class StatIndex:
    """Remembers the SHA-256 of files by (path, size, modification time), in a JSON file.

    Args:
        path: the index; a missing or damaged one is an empty one.
    """

    def __init__(self, path: Path):
        self._path = path
        self._used: dict[str, list[Any]] = {}
        try:
            self._known = json.loads(path.read_text())
        except (OSError, ValueError):
            self._known = {}

    def digest(self, path: Path) -> str:
        """SHA-256 of a file's content as hex, or the reason why it cannot be read."""
        try:
            stat = path.stat()
            entry = self._known.get(str(path))
            if entry is None or entry[:2] != [stat.st_size, stat.st_mtime_ns]:
                with path.open("rb") as content:
                    entry = [stat.st_size, stat.st_mtime_ns, hashlib.file_digest(content, "sha256").hexdigest()]
        except OSError as error:
            return f"unreadable: {error.strerror}"
        if time.time_ns() - stat.st_mtime_ns > _SETTLED_NS:
            self._used[str(path)] = entry
        return entry[2]

    def save(self) -> None:
        """Writes what was asked for since the index was opened, if it differs from what the file holds."""
        if self._used != self._known:
            temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(self._used))
            temporary.replace(self._path)


def hash_settings(settings: dict[str, Any]) -> str:
    """The first 32 hex digits of the SHA-256 of ``settings`` as canonical JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]
