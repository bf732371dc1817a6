"""How a run ends: the exit record, and which rank failed first."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch.distributed import Store

from trainer.distributed.launch import Launch
from trainer.distributed.log import LOGGER
from trainer.distributed.process_group import stop_process_group
from trainer.errors import DONE, Refused, StorageFailed, TrainingFailed
from trainer.run_directory import RunDirectory


@dataclass
class Exit:
    """How the session ends, filled in as it does."""

    code: int = DONE
    sentence: str = ""
    store: Store | None = None


@contextmanager
def recorded_exit(directory: RunDirectory | None, launch: Launch) -> Iterator[Exit]:
    """Writes ``exit.json`` however the session ends, finds the rank that failed first, and leaves the process group."""
    record = Exit()
    try:
        yield record
    except (Refused, TrainingFailed, StorageFailed) as error:
        record.code, record.sentence = error.code, str(error)
        raise
    except Exception as error:
        failure = _first_failure(record.store, launch, error)
        record.code, record.sentence = failure.code, str(failure)
        raise failure from error
    finally:
        if directory is not None:
            directory.write_exit(record.code, record.sentence)
        if sys.exc_info()[0] is None:
            stop_process_group()


def _first_failure(store: Store | None, launch: Launch, error: Exception) -> TrainingFailed:
    """One sentence about the rank that failed first; the others only see that it has gone."""
    LOGGER.error("%s", traceback.format_exc())
    own = f"rank {launch.rank}: {type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else 'no message'}"
    first = own
    if store is not None:
        try:
            first = store.compare_set("failure", "", own).decode()
        except RuntimeError:  # the store died with rank 0
            first = own
    return TrainingFailed(f"Training failed on {first}. Tracebacks are in run.dir under logs/. Run the same command again to resume.")
