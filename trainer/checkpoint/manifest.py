"""The manifest: what a checkpoint consists of. Its presence under its final name is what makes a checkpoint exist."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

from trainer.checkpoint.files import open_regular, write_atomically
from trainer.errors import StorageFailed

NAME = "manifest.json"
FORMAT = 1
MAX_BYTES = 64 * 2**20
SUFFIXES = frozenset({".safetensors", ".json", ".yaml", ".txt", ".jinja", ".model"})
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Entry(TypedDict):
    """One file: size in bytes, SHA-256 as 64 lower-case hex digits. Plain JSON, so that ranks can send it."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's step, and its files by path relative to its folder."""

    step: int
    files: dict[str, Entry]


def hash_file(path: Path) -> str:
    """SHA-256 of a regular file's content, in hex."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def name_problem(name: str) -> str | None:
    """Why ``name`` may not stand in a manifest, as the end of a sentence; None if it may."""
    path = PurePosixPath(name)
    if not name.isprintable() or str(path) != name or path.is_absolute() or ".." in path.parts:
        return "is not a plain relative path inside the checkpoint"
    if path.suffix not in SUFFIXES or name == NAME:
        return f"is not of a kind that a checkpoint holds ({' '.join(sorted(SUFFIXES))})"
    return None


def write(folder: Path, manifest: Manifest) -> None:
    """Writes ``folder``'s manifest, atomically and durably.

    Raises:
        OSError: the disk is full, the folder is read-only ...
    """
    payload = {"format": FORMAT, "step": manifest.step, "files": manifest.files}
    write_atomically(folder / NAME, _canonical(payload | {"sha256": _self_hash(payload)}))


def read(folder: Path) -> Manifest:
    """Reads and checks ``folder``'s manifest; the files that it lists are not looked at.

    Raises:
        StorageFailed: it is missing, damaged, malformed, or lists a path that leaves the folder.
    """
    where = f"{folder.name}/{NAME}"
    payload = _load(folder / NAME, where)
    claimed = payload.pop("sha256", None)
    if claimed != _self_hash(payload):
        raise StorageFailed(f"{where} is damaged: its content does not have the SHA-256 that it states.")
    if payload.get("format") != FORMAT:
        raise StorageFailed(
            f"{where} has format {payload.get('format')!r}, this version reads format {FORMAT}: use the version that wrote it."
        )
    if set(payload) != {"format", "step", "files"} or not _is_count(payload["step"]) or not isinstance(payload["files"], dict):
        raise StorageFailed(f"{where} is malformed: it must have exactly format, step (a number), files (an object) and sha256.")
    for name, entry in payload["files"].items():
        if problem := name_problem(name):
            raise StorageFailed(f"{where} lists {name!r}, which {problem}.")
        if not _is_entry(entry):
            raise StorageFailed(f"{where} is malformed: {name} must have exactly a size in bytes and a sha256 of 64 hex digits.")
    return Manifest(payload["step"], payload["files"])


def _load(path: Path, where: str) -> dict[str, Any]:
    try:
        with open_regular(path) as stream:
            if os.fstat(stream.fileno()).st_size > MAX_BYTES:
                raise StorageFailed(f"{where} is larger than {MAX_BYTES} bytes; no manifest is.")
            raw = stream.read(MAX_BYTES)
    except FileNotFoundError:
        raise StorageFailed(f"{where} is missing: the checkpoint was never completed, or has lost it.") from None
    except OSError as error:
        raise StorageFailed(f"{where} cannot be read: {error.strerror or error}.") from error
    try:
        payload = json.loads(raw)
        # Only one spelling is accepted, so that no changed byte, duplicate key or NaN can mean the same.
        if isinstance(payload, dict) and _canonical(payload) == raw:
            return payload
    except (ValueError, RecursionError):
        pass
    raise StorageFailed(f"{where} is damaged: it is not canonical JSON.")


def _canonical(payload: dict[str, Any]) -> bytes:
    return (json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n").encode()


def _self_hash(payload: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(payload)).hexdigest()


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_entry(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"size", "sha256"}:
        return False
    return _is_count(value["size"]) and isinstance(value["sha256"], str) and _SHA256.fullmatch(value["sha256"]) is not None
