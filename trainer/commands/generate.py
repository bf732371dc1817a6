"""``isotrain generate``: text from a run, a checkpoint or a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trainer.checkpoint.checkpointer import choose
from trainer.checkpoint.export import load_model
from trainer.errors import DONE, Refused
from trainer.model.generation import generate_text

if TYPE_CHECKING:
    from trainer.commands.config import Generate


def run(settings: Generate) -> int:
    """Prints one continuation of the prompt; returns the exit code."""
    model, tokenizer = _load(Path(settings.checkpoint))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    text = generate_text(
        model.to(device),
        tokenizer,
        prompt=settings.prompt,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        seed=settings.seed,
    )[0]
    print(text)
    return DONE


def _load(source: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if (source / "config.json").is_file():
        try:
            model = AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, trust_remote_code=False, local_files_only=True)
            return model.eval(), AutoTokenizer.from_pretrained(source, trust_remote_code=False, local_files_only=True)
        except (OSError, ValueError) as error:
            raise Refused(f"checkpoint={source} looks like a Hugging Face folder but cannot be loaded: {error}") from error
    checkpoint, _ = choose(source)
    return load_model(checkpoint), AutoTokenizer.from_pretrained(checkpoint / "tokenizer", local_files_only=True)
