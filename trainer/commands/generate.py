"""``isotrain generate``: text from a run, a checkpoint or a Hugging Face folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trainer.checkpoint.export import load_model
from trainer.checkpoint.find import choose
from trainer.errors import DONE, Refused
from trainer.model.generation import generate_text
from trainer.model.pretrained import read_config
from trainer.model.skeleton import CLASSES, task_of
from trainer.session.facts import WRITERS

if TYPE_CHECKING:
    from trainer.commands.config import Generate


def run(settings: Generate) -> int:
    """Prints one continuation of the prompt, or the target for it; returns the exit code."""
    model, tokenizer = _load(Path(settings.checkpoint))
    task = task_of(model.config)
    if task not in WRITERS:
        raise Refused(
            f"checkpoint={settings.checkpoint} is a model for {task}, which writes no text; to see how good it is: isotrain evaluate"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    text = generate_text(
        model.to(device),
        tokenizer,
        prompt=settings.prompt,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        num_beams=settings.num_beams,
        seed=settings.seed,
    )[0]
    print(text)
    return DONE


def _load(source: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if (source / "config.json").is_file():
        auto = CLASSES[task_of(read_config(source))]
        try:
            model = auto.from_pretrained(source, use_safetensors=True, trust_remote_code=False, local_files_only=True)
            return model.eval(), AutoTokenizer.from_pretrained(source, trust_remote_code=False, local_files_only=True)
        except (OSError, ValueError) as error:
            raise Refused(f"checkpoint={source} looks like a Hugging Face folder but cannot be loaded: {error}") from error
    checkpoint, skipped = choose(source)
    for line in skipped:
        print(line, file=sys.stderr)  # what is printed otherwise is the text, and nothing else
    return load_model(checkpoint), AutoTokenizer.from_pretrained(checkpoint / "tokenizer", local_files_only=True)
