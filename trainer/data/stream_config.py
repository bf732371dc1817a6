"""Settings of data that is read while training, for sets that do not fit on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

from trainer.data.config import Data
from trainer.schema import setting

if TYPE_CHECKING:
    from trainer.data.shards import Shards
    from trainer.protocols import Source
    from trainer.types import Needs


@dataclass
class Streamed(Data):
    """What every corpus has that can be read while training."""

    held_out_key: ClassVar[str] = "validation_path"
    """The key that names held-out records of the user's own."""

    streaming: bool = setting(
        False,
        "read while training, for a set that does not fit on disk: nothing is prepared, a tokenizer must exist, and the order of records "
        "is fixed for a number of data ranks only",
    )
    shuffle_buffer: int = setting(
        1000,
        "records that are shuffled at a time while streaming; 0: none, and files in the order of their names",
        minimum=0,
        aliases=("shuffle_buffer_size", "buffer_size"),
    )

    def stream(self, needs: Needs) -> tuple[Shards, Source | None]:
        """What is read while training, and the held-out records, to be prepared as always; None: there are none.

        Args:
            needs: what the objective reads; it has no label.

        Raises:
            Refused: nothing is there, or it cannot be had.
        """
        raise NotImplementedError(f"{type(self).__name__} is a data config without stream()")

    def problems(self) -> Iterator[str]:
        """See ``Data.problems``."""
        yield from super().problems()
        default = next(field.default for field in fields(Streamed) if field.name == "shuffle_buffer")
        if not self.streaming:
            if self.shuffle_buffer != default:
                yield f"data.shuffle_buffer={self.shuffle_buffer} has no effect without data.streaming=true: leave it out."
            return
        own = getattr(self, self.held_out_key)
        if own is None and self.validation_fraction > 0:
            yield (
                f"data.streaming=true cannot hold out a share of what it has not read yet: set data.validation_fraction=0, or name "
                f"what is held out with data.{self.held_out_key}."
            )
        if self.group_by_length:
            yield "data.streaming=true cannot tell which records are of similar length before it reads them: leave data.group_by_length out."
        if self.workers:
            yield (
                f"data.streaming=true reads ahead in a thread, where its place is known when a checkpoint is made: leave "
                f"data.workers={self.workers} out."
            )
        if getattr(self, "group", None) is not None:
            yield "data.group has no effect with data.streaming=true, because no share of the records is held out: leave it out."
