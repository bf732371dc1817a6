"""``isotrain export``: a checkpoint becomes a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from transformers.utils.logging import disable_progress_bar

from trainer.checkpoint.export import export
from trainer.errors import DONE
from trainer.precision.dtypes import DTYPES

if TYPE_CHECKING:
    from trainer.commands.config import Export


def run(settings: Export) -> int:
    """Exports and says what can be done with the result; returns the exit code."""
    disable_progress_bar()  # transformers' own, for a file that is written in a moment
    checkpoint = export(Path(settings.checkpoint), Path(settings.to), DTYPES[settings.dtype])
    print(f"{checkpoint} exported to {settings.to} in {settings.dtype}. Load it with transformers:")
    print(f"  AutoModelForCausalLM.from_pretrained({settings.to!r}); AutoTokenizer.from_pretrained({settings.to!r})")
    return DONE
