"""A checkpoint as a Hugging Face folder: what ``from_pretrained`` loads, with equal logits."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel

from trainer.checkpoint.find import choose
from trainer.errors import Refused
from trainer.model.names import aliases
from trainer.model.skeleton import build_model, task_of
from trainer.state.storage import read_tensors


def load_model(checkpoint: Path) -> PreTrainedModel:
    """The model of a verified checkpoint folder, whole, fp32, on the CPU."""
    config = AutoConfig.from_pretrained(checkpoint / "model", trust_remote_code=False, local_files_only=True)
    model = build_model(config, task_of(config))
    tied = aliases(model)
    tensors = read_tensors(checkpoint, "model.")
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    computed = {name for name, _ in model.named_buffers()}
    assert not unexpected and set(missing) <= tied.keys() | computed, (
        f"checkpoint and model disagree: missing {missing}, unexpected {unexpected}"
    )
    model.tie_weights()
    return model.eval()


def export(source: Path, to: Path, dtype: torch.dtype) -> tuple[Path, list[str]]:
    """Writes the newest whole checkpoint of ``source`` as a Hugging Face folder.

    Args:
        source: run directory or checkpoint folder.
        to: new or empty folder.
        dtype: of the exported weights; fp32 loses nothing.

    Returns:
        The checkpoint that was exported, and a sentence for each newer one that was skipped because it is damaged.

    Raises:
        Refused: ``source`` holds no checkpoint, or ``to`` is not empty.
        StorageFailed: no checkpoint is whole.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise Refused(f"to={to} exists and is not an empty folder: choose another, or remove it first.")
    checkpoint, skipped = choose(source)
    model = load_model(checkpoint).to(dtype)
    model.save_pretrained(to)
    for path in (checkpoint / "tokenizer").iterdir():
        shutil.copyfile(path, to / path.name)
    return checkpoint, skipped
