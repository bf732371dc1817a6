"""How a checkpoint comes to exist and ceases to, so that a crash at any instant leaves the old state or the new.

docs/decisions/0003-checkpoint-commit.md gives the order of operations and its reasons. One rank calls everything here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from trainer.checkpoint import manifest
from trainer.checkpoint.files import remove, sync
from trainer.checkpoint.manifest import Entry, Manifest
from trainer.checkpoint.verify import newest, step_of, walk
from trainer.errors import StorageFailed

PARTIAL, REPLACED, DELETED = ".partial", ".replaced", ".deleted"


def begin(checkpoints: Path, step: int) -> Path:
    """Makes the empty folder into which all ranks write the checkpoint of ``step``.

    Raises:
        OSError: it cannot be made.
    """
    partial = checkpoints / f"step-{step}{PARTIAL}"
    remove(partial)
    partial.mkdir(parents=True)
    return partial


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, Entry]:
    """Makes files durable that have been written, and says what the manifest has to know of them.

    Args:
        folder: what ``begin`` returned.
        names: paths relative to it.
    """
    entries = {}
    for name in names:
        problem = manifest.name_problem(name)
        assert problem is None, f"{name} {problem}"
        path = folder / name
        sync(path)
        entries[name] = Entry(size=path.stat().st_size, sha256=manifest.hash_file(path))
    return entries


def commit(partial: Path, entries: dict[str, Entry], step: int) -> Path:
    """Publishes a checkpoint of which every rank has confirmed its files; replaces one of the same step.

    Args:
        partial: what ``begin`` returned.
        entries: of all its files, those that other ranks wrote too.
        step: the step.

    Returns:
        The checkpoint, durable.

    Raises:
        StorageFailed: ``partial`` does not hold exactly these files.
        OSError: the disk is full, the folder is read-only ...
    """
    present = {name for name, _ in walk(partial)}
    if present != set(entries):
        odd = ", ".join(sorted(present ^ set(entries)))
        raise StorageFailed(
            f"Checkpoint step-{step} was not completed: in {partial}, what was written and what ranks confirmed differ ({odd})."
        )
    for folder in {parent for name in entries for parent in PurePosixPath(name).parents}:
        sync(partial / folder)
    manifest.write(partial, Manifest(step, entries))
    final = partial.with_name(f"step-{step}")
    replaced = final.with_name(final.name + REPLACED)
    if os.path.lexists(final):
        remove(replaced)
        final.rename(replaced)
    partial.rename(final)
    sync(final.parent)
    remove(replaced)
    return final


def prune(checkpoints: Path, keep: int | None, written: int) -> None:
    """Deletes what retention does not keep.

    Kept are ``written``, the ``keep - 1`` complete checkpoints before it, and all after it (a resumed run passes them again,
    and replaces them). The folder is renamed first, so that no half-deleted one is ever taken for a checkpoint.

    Args:
        checkpoints: the folder of ``step-N`` folders.
        keep: how many to keep, at least 1; None: all.
        written: the step that was just committed.
    """
    if keep is None:
        return
    assert keep >= 1
    folders = newest(checkpoints)
    older = folders[folders.index(checkpoints / f"step-{written}") + 1 :]
    kept = [folder for folder in older if _is_complete(folder)][: keep - 1]
    for folder in older:
        if folder not in kept:
            deleted = folder.with_name(folder.name + DELETED)
            remove(deleted)
            folder.rename(deleted)
            sync(checkpoints)
            remove(deleted)


def clean(checkpoints: Path) -> list[str]:
    """Puts right what a crash left behind; called before resuming, by the only run that holds the directory.

    Returns:
        One sentence for each leftover.
    """
    said = []
    for path in sorted(checkpoints.iterdir()) if checkpoints.is_dir() else []:
        final = path.with_suffix("")
        if step_of(final) is None or path.suffix not in (PARTIAL, REPLACED, DELETED):
            continue
        if path.suffix == REPLACED and not os.path.lexists(final):
            path.rename(final)
            sync(checkpoints)
            said.append(f"Put back {final}: the run ended while it was being replaced.")
        else:
            remove(path)
            said.append(f"Removed {path}: the run ended while it was being {'written' if path.suffix == PARTIAL else 'deleted'}.")
    return said


def _is_complete(folder: Path) -> bool:
    try:
        manifest.read(folder)
    except StorageFailed:
        return False
    return True
