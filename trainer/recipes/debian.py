"""Descriptions of Debian's packages with the one-line synopses that people wrote for them, from the archive's Translation-en.

Read through apt-get, which checks signatures, with lists of its own: the system's are neither read nor changed, and no root is needed.
The archive changes with point releases, so the content cannot be pinned; its SHA-256 stands in the record beside it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trainer.errors import Refused
from trainer.recipes.fetch import last_line
from trainer.recipes.once import build_once, run

logger = logging.getLogger(__name__)

MIN_CHARACTERS = 300
"""Of a description; shorter ones say little more than their synopsis."""
MIN_WORDS = 4
"""Of a synopsis."""
MIN_PAIRS = 1000
"""Fewer mean that apt brought no list of a distribution."""


def debian_descriptions(cache: Path) -> Path:
    """JSON lines of ``{"document", "summary", "group"}``: description, synopsis, and the description's first paragraph.

    Sister packages (-dev, -doc, -dbg) share paragraphs: split by ``group``, or held-out text leaks. Each document stands there once.

    Args:
        cache: folder of all recipes.

    Raises:
        Refused: there is no apt-get here, or it has no package descriptions to give.
    """
    return build_once(cache / "debian-descriptions", _build) / "descriptions.jsonl"


def parse(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """Records of the stanzas of a Translation-en file, blanks collapsed; of equal descriptions the first that passes counts."""
    seen = set()
    for summary, paragraphs in _descriptions(lines):
        document = " ".join(paragraphs)
        if len(document) >= MIN_CHARACTERS and len(summary.split()) >= MIN_WORDS and document not in seen:
            seen.add(document)
            yield {"document": document, "summary": summary, "group": paragraphs[0]}


def _descriptions(lines: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """(synopsis, paragraphs): the first line of a Description-en field, and what " ." parts in those indented below it.

    Debian Policy Manual, 5.6.13.
    """
    summary: str | None = None
    paragraphs: list[list[str]] = [[]]
    for line in [*lines, ""]:
        if summary is not None and line.startswith(" "):
            if line.strip() == ".":
                paragraphs.append([])
            else:
                paragraphs[-1] += line.split()
            continue
        if summary is not None:
            yield summary, [" ".join(words) for words in paragraphs if words]
        name, _, value = line.partition(":")
        summary, paragraphs = (" ".join(value.split()), [[]]) if name == "Description-en" else (None, [[]])


def _build(folder: Path) -> dict[str, Any]:
    with TemporaryDirectory(prefix="apt-", dir=folder) as scratch:
        listing = _fetch(Path(scratch), folder)
        content = listing.read_bytes()
    records = list(parse(content.decode("utf-8", errors="replace").split("\n")))
    if len(records) < MIN_PAIRS:
        raise Refused(
            f"The package descriptions that apt-get fetched ({listing.name}) hold {len(records)} usable pairs, fewer than {MIN_PAIRS}. {_elsewhere(folder)}"
        )
    with (folder / "descriptions.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    return {"file": listing.name, "sha256": hashlib.sha256(content).hexdigest(), "pairs": len(records)}


def _fetch(scratch: Path, folder: Path) -> Path:
    """The Translation-en of the distribution itself, by ``apt-get update`` into ``scratch``."""
    if shutil.which("apt-get") is None:
        raise Refused(f"Debian's package descriptions come through apt-get, which this machine does not have. {_elsewhere(folder)}")
    logger.warning("Fetching Debian's package descriptions with apt-get (about 7 MB), once, for %s", folder.parent)
    (scratch / "lists" / "partial").mkdir(parents=True)
    (scratch / "apt.conf").write_text(apt_configuration(scratch))
    done = run(
        ["apt-get", "--config-file", str(scratch / "apt.conf"), "update"],
        lambda reason: _brought_nothing(reason, folder),
        env=os.environ | {"LC_ALL": "C"},
    )
    # Not the exit status: one foreign source that does not answer fails the whole update.
    found = sorted((scratch / "lists").glob("*_i18n_Translation-en"), key=lambda path: path.stat().st_size)
    if not found:
        raise _brought_nothing(last_line(done.stderr), folder)
    # The largest: lists of updates and security fixes repeat a part of it and change by the day.
    return found[-1]


def apt_configuration(scratch: Path) -> str:
    """English descriptions, uncompressed, no package lists, below ``scratch``, and none of the machine's hooks."""
    return f"""\
#clear Acquire::Languages;
Acquire::Languages {{ "en"; }};
Acquire::GzipIndexes "false";
Acquire::IndexTargets::deb::Packages::DefaultEnabled "false";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Dir::State::lists "{scratch}/lists/";
Dir::Cache "{scratch}/";
"""


def _brought_nothing(reason: str, folder: Path) -> Refused:
    return Refused(f"apt-get fetched no package descriptions ({reason.rstrip('.')}). {_elsewhere(folder)}")


def _elsewhere(folder: Path) -> str:
    return f"Make {folder.name.partition('.building-')[0]} on a machine with Debian or Ubuntu and a network, and copy that folder into {folder.parent}."
