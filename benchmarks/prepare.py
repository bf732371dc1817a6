"""How fast a corpus is prepared, beside a bare loop over the same tokenizer, and how many slots of packed rows are used.

    python benchmarks/prepare.py [--repeats 7]

The loop has all texts in memory and gives them to ``encode_batch_fast`` 1,000 at a time, on all cores, and reads the ids. Preparing reads
the files, hashes every document for its split, tokenizes, and writes the token streams to disk until they would survive a power cut.
Both use one tokenizer, trained before. They take turns, so that a busy machine is busy for both; the median of the rounds' ratios counts,
in wall time and in CPU time: beside other programs the one with more threads gets more of the machine, but uses no less of it.

Prints the numbers and writes benchmarks/results/prepare.json. Needs no GPU; close other programs for steady numbers.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import machine

from trainer.data.config import Text, TokenizerConfig
from trainer.data.prepare import Corpus, prepare
from trainer.data.sources import Skipped, python_stdlib
from trainer.data.tokenizer import load_tokenizer, train_tokenizer
from trainer.types import Needs, Window

TARGET_SPEED_RATIO, TARGET_SLOTS_USED = 0.8, 0.99
VOCAB_SIZE, TEXTS_AT_ONCE = 4096, 1000
WINDOWS = {"causal_lm": Window(1024, 1025), "masked_lm": Window(512, 512)}
DOCUMENTS = {"python_stdlib, a file a document": "file", "python_stdlib, a paragraph a document": "paragraph"}


def timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Wall time and CPU time of all threads, and what came out."""
    wall, cpu = time.perf_counter(), time.process_time()
    done = work()
    return {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}, done


def bare_loop(texts: list[str], tokenizer: Any) -> None:
    for first in range(0, len(texts), TEXTS_AT_ONCE):
        for encoding in tokenizer.encode_batch_fast(texts[first : first + TEXTS_AT_ONCE], add_special_tokens=False):
            encoding.ids  # noqa: B018  without this the loop would have nothing to show


def slots_used(corpus: Corpus, window: Window) -> float:
    """Share of real tokens among all slots of an epoch's packed rows."""
    samples = replace(corpus, needs=Needs({"text": window})).samples("train")
    filled = samples.take(np.arange(len(samples))).rows["text"].filled
    return float(filled.sum() / (len(samples) * window.width))


def measure(data: Text, folder: Path, repeats: int) -> dict[str, Any]:
    texts = [record.texts["text"] for record in data.open(Needs({"text": WINDOWS["causal_lm"]}))[""].records(Skipped(0))]
    tokenizer, _ = load_tokenizer(Path(data.tokenizer.path))
    rounds = []
    for number in range(repeats + 1):
        bare, _ = timed(lambda: bare_loop(texts, tokenizer))
        data.cache_dir = str(folder / f"cache-{number}")  # empty
        ours, corpus = timed(lambda: prepare(data, Needs({"text": WINDOWS["causal_lm"]}), quiet=True))
        rounds.append({"bare": bare, "prepare": ours})
    used = {name: slots_used(corpus, window) for name, window in WINDOWS.items()}
    for number in range(repeats + 1):
        shutil.rmtree(folder / f"cache-{number}")
    del rounds[0]  # warms the file caches
    return {
        "documents": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
        "rounds": rounds,
        "speed_ratio": {
            clock: statistics.median(one["bare"][clock] / one["prepare"][clock] for one in rounds) for clock in rounds[0]["bare"]
        },
        "slots_used": used,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    corpora = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        library = python_stdlib()
        for name, path in library.files:
            (folder / "text" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / "text" / name)
        train_tokenizer((record.texts["text"] for record in library.records(Skipped(0))), VOCAB_SIZE, folder / "tokenizer")
        for name, document in DOCUMENTS.items():
            tokenizer = TokenizerConfig(path=str(folder / "tokenizer"))
            corpora[name] = measure(Text(path=str(folder / "text"), document=document, tokenizer=tokenizer), folder, options.repeats)
            ratio = corpora[name]["speed_ratio"]
            slots = ", ".join(f"{share:.2%} by {objective}" for objective, share in corpora[name]["slots_used"].items())
            print(
                f"{name}: {ratio['wall_seconds']:.2f} x the loop's speed ({ratio['cpu_seconds']:.2f} by CPU time); slots used: {slots}",
                flush=True,
            )
    results = {
        "what": "time of preparing a corpus with a given tokenizer, and of a bare loop over that tokenizer, taking turns",
        **machine("numpy", "tokenizers"),
        "target_speed_ratio": TARGET_SPEED_RATIO,
        "target_slots_used": TARGET_SLOTS_USED,
        "corpora": corpora,
    }
    path = Path(__file__).with_name("results") / "prepare.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
