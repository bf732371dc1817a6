"""A rank's tensors in safetensors files: written straight from where they are, and hashed while they are written.

Torch's writer builds each file in memory first, and leaves nothing to be hashed but the file. The format is what its reader reads: each
tensor with its offsets in the whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, DCP_VERSION_KEY, DTYPE_MAP, HF_DCP_VERSION

from trainer.checkpoint.manifest import Entry
from trainer.checkpoint.pace import Pace, stand_back
from trainer.state.storage import Part

_MOST_UNHASHED = 256 << 20
"""Bytes by which writing may be ahead of hashing, which is slower than a good disk's cache: copies of what lies on a GPU wait in the host's memory."""
_PIECE = 4 << 20
"""Bytes between two rests: some milliseconds of work."""
_NAMES = {dtype: name for name, dtype in DTYPE_MAP.items()}


def write_shards(folder: Path, files: Mapping[str, Sequence[Part]], pace: Pace | None = None) -> dict[str, Entry]:
    """Writes this rank's ``files`` (trainer.state.storage.Shares), durable when this returns; as fast as it goes, or at a ``pace``.

    Returns:
        What the manifest has to know of each.

    Raises:
        OSError: the disk is full ...
    """
    return {name: _write(folder / name, in_order(parts), pace) for name, parts in files.items()}


def in_order(parts: Sequence[Part]) -> list[Part]:
    """As they lie in a file: large elements first, so that each begins at a multiple of its element."""
    return sorted(parts, key=lambda part: (-part.tensor.element_size(), part.name))


def _write(path: Path, ordered: Sequence[Part], pace: Pace | None) -> Entry:
    contents = chain([memoryview(_header(ordered))], _contents(ordered))
    with path.open("xb") as stream:
        sha256 = _write_at_once(stream, contents) if pace is None else _write_in_pieces(stream, contents, pace)
        return Entry(size=stream.tell(), sha256=sha256)


def _write_at_once(stream: BinaryIO, contents: Iterable[memoryview]) -> str:
    """With a thread that hashes while this one writes, neither with Python's lock; without a core for both, it does while the disk is waited for."""
    digest = hashlib.sha256()
    with ThreadPoolExecutor(1, initializer=stand_back) as beside:
        unhashed: deque[Future[int]] = deque()
        ahead = 0
        for content in contents:
            unhashed.append(beside.submit(_hash, digest, content))
            ahead += content.nbytes
            stream.write(content)
            while ahead > _MOST_UNHASHED:
                ahead -= unhashed.popleft().result()
        _make_durable(stream)
        for hashed in unhashed:
            hashed.result()
    return digest.hexdigest()


def _write_in_pieces(stream: BinaryIO, contents: Iterable[memoryview], pace: Pace) -> str:
    """With a rest after each piece."""
    digest = hashlib.sha256()
    for content in contents:
        for begin in range(0, content.nbytes, _PIECE):
            began = time.thread_time()
            piece = content[begin : begin + _PIECE]
            stream.write(piece)
            digest.update(piece)
            pace.rest(time.thread_time() - began)
    _make_durable(stream)
    return digest.hexdigest()


def _hash(digest: Any, content: memoryview) -> int:
    digest.update(content)
    return content.nbytes


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


def _make_durable(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())
