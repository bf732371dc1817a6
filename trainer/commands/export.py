"""``isotrain export``: a checkpoint becomes a Hugging Face folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.utils.logging import disable_progress_bar

from trainer.checkpoint.export import export
from trainer.errors import DONE
from trainer.model.pretrained import read_config
from trainer.model.skeleton import CLASSES, task_of
from trainer.precision.dtypes import DTYPES

if TYPE_CHECKING:
    from trainer.commands.config import Export


def run(settings: Export) -> int:
    """Exports and says what can be done with the result; returns the exit code."""
    disable_progress_bar()  # transformers' own, for a file that is written in a moment
    checkpoint, skipped = export(Path(settings.checkpoint), Path(settings.to), DTYPES[settings.dtype])
    for line in skipped:
        print(line, file=sys.stderr)
    print(f"{checkpoint} exported to {settings.to} in {settings.dtype}. Load it with transformers:")
    auto = CLASSES[task_of(read_config(Path(settings.to)))].__name__
    print(f"  {auto}.from_pretrained({settings.to!r}); AutoTokenizer.from_pretrained({settings.to!r})")
    return DONE
