"""Whether a checkpoint can be trusted, decided before anything in it is parsed, and which one to resume from."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from trainer.checkpoint import manifest
from trainer.errors import StorageFailed

_STEP = re.compile(r"step-(0|[1-9]\d*)")
_FOREIGN = {b"PK": "a zip archive, as torch.save writes it", b"\x80": "a pickle"}


def step_of(folder: Path) -> int | None:
    """The step in a checkpoint folder's name ``step-N``; None for any other name."""
    match = _STEP.fullmatch(folder.name)
    return int(match[1]) if match else None


def newest(checkpoints: Path) -> list[Path]:
    """Everything in ``checkpoints`` named ``step-N``, highest step first, whatever its state; [] if there is no such folder."""
    found = checkpoints.iterdir() if checkpoints.is_dir() else ()
    folders = {step: path for path in found if (step := step_of(path)) is not None}
    return [folders[step] for step in sorted(folders, reverse=True)]


def choose(checkpoints: Path, check: Callable[[Path], list[str]], candidates: list[Path] | None = None) -> tuple[Path | None, list[str]]:
    """The newest checkpoint without problems.

    Args:
        checkpoints: the folder of ``step-N`` folders.
        candidates: what is in it, newest first, where several ranks must look at the same; None: ``newest``.
        check: what is wrong with one of them, normally ``problems``; on several ranks, the union of every rank's share.

    Returns:
        The checkpoint, None if there is none at all; and one sentence for each newer one that was skipped.

    Raises:
        StorageFailed: there are checkpoints, but none can be trusted; lists each with its reason.
    """
    skipped: list[str] = []
    for folder in newest(checkpoints) if candidates is None else candidates:
        found = check(folder)
        if not found:
            return folder, skipped
        more = f" ({len(found) - 1} more problems)" if len(found) > 1 else ""
        skipped.append(f"Checkpoint {folder.name} cannot be used: {found[0]}{more}")
    if not skipped:
        return None, []
    raise StorageFailed(
        f"Nothing was started, because no checkpoint in {checkpoints} can be trusted.\n"
        + "\n".join(f"  {sentence}" for sentence in skipped)
        + "\nRestore one of these folders from a backup, or choose another run.dir: it starts anew, or from checkpoint.resume=FOLDER."
    )


def problems(folder: Path, share: tuple[int, int] = (0, 1)) -> list[str]:
    """Everything that is wrong with a checkpoint, one sentence each that names the file; [] if it is complete and unchanged.

    No content is parsed but the manifest and the safetensors headers, and nothing is executed.
    A manifest finds damage; it does not prove who wrote it.

    Args:
        folder: the checkpoint.
        share: (rank, number of ranks): read only this rank's part of the files. Names and sizes are always all checked.
    """
    if folder.is_symlink() or not folder.is_dir():
        return [f"{folder} is {'a symbolic link' if folder.is_symlink() else 'not a folder'}."]
    try:
        listed = manifest.read(folder)
        present = dict(walk(folder))
    except StorageFailed as error:
        return [str(error)]
    except OSError as error:
        return [f"{folder} cannot be read: {error.strerror or error}."]
    found = []
    if step_of(folder) not in (None, listed.step):
        found.append(f"{folder.name}/{manifest.NAME} belongs to step {listed.step}.")
    found += [
        f"{folder.name}/{_printable(name)} {_unlisted(kind)}."
        for name, kind in present.items()
        if name not in listed.files and name != manifest.NAME
    ]
    rank, num_ranks = share
    for index, (name, entry) in enumerate(sorted(listed.files.items())):
        found += _file_problems(folder, name, entry, present.get(name), read=index % num_ranks == rank)
    return found


def walk(folder: Path, below: str = "") -> Iterator[tuple[str, str]]:
    """Yields (relative path, ``file`` | ``link`` | ``special``) for all that is in ``folder``; links are not followed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = below + entry.name
            if entry.is_symlink():
                yield name, "link"
            elif entry.is_dir():
                yield from walk(Path(entry.path), f"{name}/")
            else:
                yield name, "file" if entry.is_file() else "special"


def _unlisted(kind: str) -> str:
    what = {"file": "a file", "link": "a symbolic link", "special": "a device or pipe"}[kind]
    return f"is {what} that the manifest does not list: it does not belong to the checkpoint"


def _file_problems(folder: Path, name: str, entry: manifest.Entry, kind: str | None, read: bool) -> list[str]:
    where, path = f"{folder.name}/{name}", folder / name
    if kind is None:
        return [f"{where} is missing."]
    if kind != "file":
        return [f"{where} is not a regular file but {'a symbolic link' if kind == 'link' else 'a device or pipe'}."]
    try:
        size = path.stat().st_size
        if size != entry["size"]:
            return [f"{where} is damaged: it has {size} bytes, the manifest says {entry['size']}."]
        if read and (sha256 := manifest.hash_file(path)) != entry["sha256"]:
            return [f"{where} is damaged: its SHA-256 is {sha256[:12]}..., the manifest says {entry['sha256'][:12]}...."]
        return _header_problems(where, path) if read and path.suffix == ".safetensors" else []
    except OSError as error:
        return [f"{where} cannot be read: {error.strerror or error}."]


def _header_problems(where: str, path: Path) -> list[str]:
    """Lets the safetensors library check length, JSON, types and offsets of a header; it maps the file and allocates no tensor."""
    try:
        with safe_open(path, framework="np"):
            return []
    except SafetensorError as error:
        with path.open("rb") as stream:
            start = stream.read(2)
        looks = next((f"; it looks like {what}" for magic, what in _FOREIGN.items() if start.startswith(magic)), "")
        return [f"{where} is not a safetensors file{looks} ({_printable(str(error))[:200]})."]


def _printable(text: str) -> str:
    """Without the escapes and line breaks by which a name or header could fake other output."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
