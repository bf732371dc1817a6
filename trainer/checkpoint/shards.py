"""A rank's tensors in safetensors files: written straight from where they are, and hashed while they are written.

Torch's writer builds each file in memory first, and leaves nothing to be hashed but the file. The format is what its reader reads: each
tensor with its offsets in the whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, DCP_VERSION_KEY, DTYPE_MAP, HF_DCP_VERSION

from trainer.checkpoint.manifest import Entry
from trainer.checkpoint.writing import AtOnce, Writer
from trainer.state.storage import Part

_AT_ONCE = AtOnce()
_NAMES = {dtype: name for name, dtype in DTYPE_MAP.items()}


def write_shards(folder: Path, files: Mapping[str, Sequence[Part]], writer: Writer = _AT_ONCE) -> dict[str, Entry]:
    """Writes this rank's ``files`` (trainer.state.storage.Shares), durable when this returns.

    Returns:
        What the manifest has to know of each.

    Raises:
        OSError: the disk is full ...
    """
    return {name: _write(folder / name, in_order(parts), writer) for name, parts in files.items()}


def in_order(parts: Sequence[Part]) -> list[Part]:
    """As they lie in a file: large elements first, so that each begins at a multiple of its element."""
    return sorted(parts, key=lambda part: (-part.tensor.element_size(), part.name))


def _write(path: Path, ordered: Sequence[Part], writer: Writer) -> Entry:
    with path.open("xb") as stream:
        sha256 = writer.write(stream, chain([memoryview(_header(ordered))], _contents(ordered)))
        return Entry(size=stream.tell(), sha256=sha256)


def _header(parts: Sequence[Part]) -> bytes:
    """Length and JSON, as https://huggingface.co/docs/safetensors describes them."""
    offsets = {part.name: {"saved_offsets": part.offsets} for part in parts}
    metadata = {CUSTOM_METADATA_KEY: json.dumps(offsets), DCP_VERSION_KEY: str(HF_DCP_VERSION), "format": "pt"}
    told: dict[str, dict[str, Any]] = {"__metadata__": metadata}
    at = 0
    for part in parts:
        end = at + part.tensor.nbytes
        told[part.name] = {"dtype": _NAMES[part.tensor.dtype], "shape": list(part.tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(told, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return len(text).to_bytes(8, "little") + text


def _contents(parts: Sequence[Part]) -> Iterator[memoryview]:
    """The bytes of the parts; what lies side by side in memory, as staged copies do, in one piece, for which Python's lock is given up once."""
    run = torch.empty(0, dtype=torch.uint8)
    for part in parts:
        if not part.tensor.numel():
            continue  # it lies nowhere
        flat = part.tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        if run.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr() and run.data_ptr() + run.nbytes == flat.data_ptr():
            run = run.as_strided((run.nbytes + flat.nbytes,), (1,))
            continue
        yield run.numpy().data
        run = flat
    yield run.numpy().data
