"""One log file per rank, and one logger; what the user sees comes from rank 0's console."""

from __future__ import annotations

import logging
from pathlib import Path

LOGGER = logging.getLogger("isotrain")


class _FileHandler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: a full disk is told where it matters, not as a traceback in between."""


def log_to(path: Path, rank: int) -> None:
    """Sends this rank's log to ``path``, appending; resumed runs go on in the same file."""
    handler = _FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(f"%(asctime)s rank {rank} %(levelname)s %(message)s"))
    for old in list(LOGGER.handlers):
        LOGGER.removeHandler(old)
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


def quiet_deepspeed() -> None:
    """Lets DeepSpeed's logger, which writes to stdout, tell of errors only; transformers imports it wherever it is installed."""
    logger = logging.getLogger("DeepSpeed")
    if _is_error not in logger.filters:
        logger.addFilter(_is_error)  # a level would be overwritten when it is imported


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
