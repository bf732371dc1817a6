"""What makes two sessions the same run: a checkpoint keeps it, and a resumed run must agree."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from trainer.config import Config
from trainer.data.config import Data
from trainer.data.stream_config import Streamed
from trainer.errors import Refused
from trainer.types import RunState

NOT_SHAPE = ("transformers_version", "_name_or_path", "architectures", "dtype")


def identity(config: Config, model: PreTrainedConfig, fingerprint: str) -> dict[str, Any]:
    """What must be the same when a run goes on, by config key; JSON.

    Args:
        config: the run's.
        model: the transformers config.
        fingerprint: of the corpus.
    """
    return {
        "model": json.loads(json.dumps({key: value for key, value in model.to_diff_dict().items() if key not in NOT_SHAPE})),
        "data": fingerprint,
        "data.sequence_length": config.data.sequence_length,
        "data.target_length": config.data.target_length,
        "data.order": _order(config),
        "data.streaming": _stream(config.data),
        "objective": {"kind": type(config.objective).__name__, **asdict(config.objective)},
        "train.seed": config.train.seed,
        "train.global_batch": config.train.global_batch,
    }


def _order(config: Config) -> dict[str, Any]:
    """What decides which samples there are and when each is due, beside corpus and seed."""
    shares = config.data.shares()
    changing = any(start != end for start, end in shares.values())
    return {
        **{name: getattr(config.data, name) for name in ("packing", "too_long", "group_by_length")},
        "shares": {name: list(pair) for name, pair in shares.items()},
        "over_steps": config.train.steps if changing else None,
    }


def _stream(data: Data) -> dict[str, Any] | None:
    """What the order of records depends on beside the set, where it is read while training."""
    return {"shuffle_buffer": data.shuffle_buffer} if isinstance(data, Streamed) and data.streaming else None


def require_same_ranks(state: RunState, data_size: int, folder: Path) -> None:
    """Refuses to go on with another number of data ranks where the order of records depends on it.

    Args:
        state: the checkpoint's.
        data_size: ranks that see different samples, now.
        folder: the checkpoint.

    Raises:
        Refused: the numbers differ and the data is streamed.
    """
    if state.stream is not None and len(state.stream) != data_size:
        before = len(state.stream)
        raise Refused(
            f"data.streaming=true fixes the order of records for a number of data ranks: {folder} has {before}, this run has {data_size}. "
            f"Start {before} (torchrun --nproc-per-node {before} train.py ...), or choose another run.dir."
        )


def require_one_run(everyone: list[dict[str, Any]]) -> None:
    """Refuses ranks that were not started alike: two machines may have another corpus, another Python or another command.

    Args:
        everyone: each rank's identity, in rank order.

    Raises:
        Refused: naming each key that differs and the first rank where it does.
    """
    first = everyone[0]
    different = {key: rank for rank, other in reversed(list(enumerate(everyone))) for key in first if other.get(key) != first[key]}
    if different:
        raise Refused(
            [
                f"{key} is not the same on rank {rank} as on rank 0: start all ranks with the same command, and give them the same data "
                "(the default corpus is the running Python's own, so it needs the same Python everywhere)."
                for key, rank in different.items()
            ]
        )


def require_same(state: RunState, now: dict[str, Any], folder: Path) -> None:
    """Refuses to go on from a checkpoint of another model, corpus, seed or batch.

    Args:
        state: the checkpoint's.
        now: this run's identity.
        folder: the checkpoint.

    Raises:
        Refused: naming each difference.
    """
    problems = []
    for key, value in now.items():
        before = state.identity.get(key)
        if before == value:
            continue
        if isinstance(value, dict) and isinstance(before, dict):
            fields = sorted(name for name in value.keys() | before.keys() if value.get(name) != before.get(name))
            before, value = ({name: side.get(name) for name in fields} for side in (before, value))
        problems.append(
            f"{key} was {before} in {folder} and is {value} now: a run cannot change it. Put it back, or choose another run.dir."
        )
    if problems:
        raise Refused(problems)
