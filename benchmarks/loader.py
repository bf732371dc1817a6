"""How fast one core makes micro-batches from the prepared cache, and how fast it finds a distant step.

    python benchmarks/loader.py [--cache-dir DIR] [--repeats 7]

Prints the numbers and writes benchmarks/results/loader.json. Needs no GPU; close other programs for steady numbers.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import machine

from trainer.data.config import PythonStdlib
from trainer.data.loader import StepLoader
from trainer.data.order import SampleOrder
from trainer.data.prepare import Corpus, prepare
from trainer.data.words import word_starts
from trainer.objective.causal_lm import CausalLM
from trainer.types import Context

SHAPES = ((16, 16, 1024), (64, 16, 1024), (16, 4, 128), (16, 4, 256))
DISTANT_STEP = 1_000_000
TARGET_TOKENS_PER_SECOND, TARGET_SEEK_SECONDS = 50e6, 0.1


def repeat(measure: Callable[[], float], repeats: int) -> dict[str, float]:
    """The median and the range of ``measure()`` over repetitions after one that does not count."""
    measure()
    values = sorted(measure() for _ in range(repeats))
    return {"median": statistics.median(values), "lowest": values[0], "highest": values[-1]}


def cpu_seconds_per_step(loader: StepLoader, first: int = 1, seconds: float = 0.3) -> float:
    """CPU time of this process per step, order, dealing, packing and collation included."""
    steps = 0
    stream = loader.steps(first, first + 10**9)
    next(stream)
    start = time.process_time()
    while time.process_time() - start < seconds:
        next(stream)
        steps += 1
    return (time.process_time() - start) / steps


def seek_seconds(loader: StepLoader) -> float:
    """Wall time until the first batch of a distant step is there."""
    start = time.perf_counter()
    next(loader.steps(DISTANT_STEP, DISTANT_STEP))
    return time.perf_counter() - start


def measure(corpus: Corpus, global_batch: int, micro_batch: int, length: int, repeats: int) -> dict:
    samples = replace(corpus, needs=CausalLM().needs(length, None)).samples("train")
    context = Context(corpus.vocabulary, 0, None, word_starts(corpus.tokenizer_folder, corpus.vocabulary))
    loader = StepLoader(samples, SampleOrder(len(samples), 0), partial(CausalLM().collate, context=context), global_batch, micro_batch)
    step = repeat(lambda: cpu_seconds_per_step(loader), repeats)
    return {
        "global_batch": global_batch,
        "micro_batch": micro_batch,
        "sequence_length": length,
        "cpu_seconds_per_step": step,
        "tokens_per_second_per_core": global_batch * length / step["median"],
        "seek_seconds": repeat(lambda: seek_seconds(loader), repeats),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cache-dir", default=None)
    arguments.add_argument("--repeats", type=int, default=7)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    corpus = prepare(PythonStdlib(cache_dir=options.cache_dir), CausalLM().needs(max(length for *_, length in SHAPES), None))
    results = {
        "what": "micro-batches from the prepared cache on one core, no workers",
        **machine("numpy", "torch", "tokenizers"),
        "target_tokens_per_second_per_core": TARGET_TOKENS_PER_SECOND,
        "target_seek_seconds": TARGET_SEEK_SECONDS,
        "corpus": corpus.counts["train"],
        "shapes": [measure(corpus, *shape, repeats=options.repeats) for shape in SHAPES],
    }
    for shape in results["shapes"]:
        print(
            f"global batch {shape['global_batch']:>3}, micro-batch {shape['micro_batch']:>2}, length {shape['sequence_length']:>4}: "
            f"{shape['tokens_per_second_per_core'] / 1e6:6.1f} M tokens/s per core, {shape['cpu_seconds_per_step']['median'] * 1e6:5.0f} us per step, "
            f"step {DISTANT_STEP:,} found in {shape['seek_seconds']['median'] * 1e3:.2f} ms"
        )
    path = Path(__file__).with_name("results") / "loader.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
