"""Small sets to be read while training."""

import json
from pathlib import Path

from trainer.data.config import TokenizerConfig
from trainer.data.record_config import Jsonl
from trainer.data.stream_config import Streamed
from trainer.data.streaming import StreamedCorpus
from trainer.types import Needs, Window

PACKED = Needs({"text": Window(8, 9)})
PADDED = Needs({"text": Window(24, 24)}, packs=False)
PAIRS = Needs({"source": Window(16, 16), "target": Window(8, 8)}, packs=False)


def text_of(number: int) -> str:
    return f"text {number}" + " of file" * (number * number % 5)


def write_files(folder: Path, sizes: list[int], bad: tuple[int, ...] = ()) -> Path:
    """JSON lines, one file for each size; all records are numbered, and the bad ones are no JSON."""
    folder.mkdir()
    number = 0
    for file, size in enumerate(sizes):
        numbers = range(number, number + size)
        lines = ["{broken" if own in bad else json.dumps({"text": text_of(own), "n": own}) for own in numbers]
        (folder / f"part-{file}.jsonl").write_text("".join(f"{line}\n" for line in lines))
        number += size
    return folder


def streamed(tmp_path: Path, tokenizer: str, path: Path, **changes) -> Jsonl:
    settings = {"streaming": True, "validation_fraction": 0.0, "shuffle_buffer": 7, "max_bad": 0} | changes
    return Jsonl(path=str(path), cache_dir=str(tmp_path / "cache"), tokenizer=TokenizerConfig(path=tokenizer), **settings)


def one_epoch(config: Streamed, corpus: StreamedCorpus, rank: int = 0, size: int = 1, epoch: int = 0, seed: int = 3) -> list:
    found = []
    for block in corpus.blocks(config, seed, rank, size).behind(None):
        if block.epoch > epoch:
            return found
        if block.epoch == epoch:
            found.append(block)
    raise AssertionError("a stream has no end")


def decoded(corpus: StreamedCorpus, found: list) -> list[str]:
    """The texts of padded samples, in their order."""
    tokenizer = corpus.maker.tokenizer
    texts = []
    for block in found:
        rows = block.samples.take(block.order).rows["text"]
        texts += [tokenizer.decode(row[:filled].tolist()) for row, filled in zip(rows.tokens, rows.filled, strict=True)]
    return texts
