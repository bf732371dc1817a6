"""Small but real checkpoints: safetensors written by the safetensors library, in the layout of a two-rank run."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from trainer.checkpoint import commit


def write_shard(partial: Path, rank: int, value: float, num_values: int = 300) -> list[str]:
    """What one rank contributes; returns the names."""
    name = f"shard-{rank:05d}-model-00001-of-00001.safetensors"
    tensors = {f"model.weight.{rank}": np.full((num_values,), value, np.float32), "optim.step": np.asarray(value, np.float32)}
    save_file(tensors, partial / name, metadata={"format": "pt"})
    return [name]


def write_files(partial: Path, step: int) -> list[str]:
    """What the writing rank adds; returns the names."""
    (partial / "tokenizer").mkdir()
    contents = {
        "state.json": json.dumps({"step": step, "tokens_seen": 7}),
        "config.yaml": "train:\n  steps: 3\n",
        "config.json": json.dumps({"model_type": "llama"}),
        "tokenizer/tokenizer.json": json.dumps({"model": {"type": "BPE", "vocab": {"é": 0}}}, ensure_ascii=False),
    }
    for name, text in contents.items():
        (partial / name).write_text(text, encoding="utf-8")
    return list(contents)


def save(checkpoints: Path, step: int, value: float = 0.0, num_values: int = 300) -> Path:
    """Begins, writes as two ranks, and commits."""
    partial = commit.begin(checkpoints, step)
    names = [write_shard(partial, rank, value, num_values) for rank in (0, 1)]
    names[0] += write_files(partial, step)
    entries = [commit.describe_files(partial, rank_names) for rank_names in names]
    return commit.commit(partial, entries[0] | entries[1], step)


def value_of(checkpoint: Path) -> float:
    """The value that ``save`` was given."""
    return float(load_file(checkpoint / "shard-00000-model-00001-of-00001.safetensors")["optim.step"])
