"""One log file per rank, and one logger; what the user sees comes from rank 0's console."""

from __future__ import annotations

import logging
from pathlib import Path

LOGGER = logging.getLogger("isotrain")


def log_to(path: Path, rank: int) -> None:
    """Sends this rank's log to ``path``, appending; resumed runs go on in the same file."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(f"%(asctime)s rank {rank} %(levelname)s %(message)s"))
    for old in list(LOGGER.handlers):
        LOGGER.removeHandler(old)
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
