"""Memory of the host into which a checkpoint is copied, so that training may go on while it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from mmap import mmap

import torch

from trainer.checkpoint.shards import in_order
from trainer.state.storage import Part

_ALIGNED = 64


class Staging:
    """Holds one checkpoint's share of this rank. Made once, and filled again for each.

    What lies on a GPU is copied by a stream of its own into page-locked memory: the host does not wait for it, and the GPU only where the
    next update would change what is being copied (``hold``).

    Args:
        files: what will be copied (trainer.state.storage.Shares), for its sizes and places.
    """

    def __init__(self, files: Mapping[str, Sequence[Part]]):
        tensors = [part.tensor for parts in files.values() for part in parts]
        size = sum(_room(parts) for parts in files.values())
        # Shared: a process that is forked later, to load data, would else make the next save copy every page once more.
        self._memory = torch.frombuffer(mmap(-1, max(size, _ALIGNED)), dtype=torch.uint8)
        self._copies = self._laid_out(files)
        self._memory.fill_(0)  # the system hands pages out when they are first written to: now, and not in the first save
        gpu = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
        self._stream = torch.cuda.Stream(gpu) if gpu is not None else None
        self._copied: torch.cuda.Event | None = None
        if self._stream is not None:
            # Torch's own page-locked memory would be rounded up to a power of two.
            _require(torch.cuda.cudart().cudaHostRegister(self._memory.data_ptr(), self.nbytes, 0))

    @property
    def nbytes(self) -> int:
        """How much memory it is."""
        return self._memory.nbytes

    def fill(self, files: Mapping[str, Sequence[Part]]) -> dict[str, list[Part]]:
        """Begins to copy the live ``files``, which must be kept until they have ``arrived``; returns the copies."""
        if self._stream is None:
            self._copy(files)
            return self._copies
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            self._copy(files)
            self._copied = self._stream.record_event()
        return self._copies

    def hold(self) -> None:
        """Lets what the GPU does from now on wait until all is copied; the host does not wait."""
        if self._copied is not None:
            torch.cuda.current_stream(self._copied.device).wait_event(self._copied)

    def arrived(self) -> None:
        """Waits until all is copied; from any thread, which from then on works on the GPU of the copies."""
        if self._copied is not None:
            torch.cuda.set_device(self._copied.device)  # else memory would be taken in the first one, by every rank
            self._copied.synchronize()

    def close(self) -> None:
        """Gives the memory back, once nobody writes from it."""
        if self._stream is not None:
            self.arrived()
            _require(torch.cuda.cudart().cudaHostUnregister(self._memory.data_ptr()))
        self._copies.clear()
        self._memory = torch.empty(0, dtype=torch.uint8)

    def _copy(self, files: Mapping[str, Sequence[Part]]) -> None:
        for name, parts in files.items():
            for copy, live in zip(self._copies[name], in_order(parts), strict=True):
                _take(copy.tensor, live.tensor)

    def _laid_out(self, files: Mapping[str, Sequence[Part]]) -> dict[str, list[Part]]:
        """Where copies come to lie: side by side, in the order of the file, which is then written in one piece."""
        copies: dict[str, list[Part]] = {}
        begins = 0
        for name, parts in files.items():
            copies[name], at = [], begins
            for part in in_order(parts):
                live = part.tensor
                copy = self._memory.narrow(0, at, live.nbytes).view(live.dtype).view(live.shape)
                copies[name].append(replace(part, tensor=copy))
                at += live.nbytes
            begins += _room(parts)
        return copies


def _take(copy: torch.Tensor, live: torch.Tensor) -> None:
    copy.copy_(live, non_blocking=True)


def _room(parts: Sequence[Part]) -> int:
    """Bytes of a file's tensors, rounded up so that what comes next is aligned for any number type."""
    return -(-sum(part.tensor.nbytes for part in parts) // _ALIGNED) * _ALIGNED


def _require(result: int) -> None:
    """Raises what CUDA's runtime reports."""
    if int(result) != 0:
        raise torch.cuda.CudaError(int(result))
