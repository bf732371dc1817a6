"""G3: the highest memory of a step at a vocabulary of 128,256, and the largest micro-batch that fits, beside transformers.Trainer and liger.

    python benchmarks/gpu_memory.py [--rehearse]

Llama 1.24B, rows of 2,048 tokens. First all train 4 rows a step; then each doubles its rows until the device is full.
"""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from gpu_llama import QUESTION as LLAMA
from gpu_race import Goal, ask, keep, make_job, race, rehearsed, run
from update import LOG_EVERY

QUESTION = replace(
    LLAMA,
    name="gpu_memory",
    ident="G3",
    what="Llama 1.24B, vocabulary 128,256, 4 x 2048 tokens a step: highest memory, and the largest micro-batch",
    vocabulary=128_256,
    micro_batch=4,
    steps=30,
    contenders=("transformers.Trainer", "transformers.Trainer, liger"),
    goals=(
        Goal("peak_memory_bytes", "transformers.Trainer", at_most=0.50),
        Goal("peak_memory_bytes", "transformers.Trainer, liger", at_most=1.0),
    ),
)
MOST = 64


def enlarge(folder: Path, rows: int) -> None:
    """Makes the job one of ``rows`` a step, for one log interval: each step's rows again and again."""
    from safetensors.torch import load_file, save_file

    job = json.loads((folder / "job.json").read_text())
    tensors = load_file(folder / "batches.safetensors")
    times = rows // job["micro_batch"]
    save_file({name: tensor.repeat(1, times, 1) for name, tensor in tensors.items()}, folder / "batches.safetensors")
    sizes = {"train.global_batch": rows, "train.micro_batch": rows, "train.steps": LOG_EVERY}
    kept = [override for override in job["overrides"] if override.partition("=")[0] not in sizes]
    job |= {"micro_batch": rows, "steps": LOG_EVERY, "overrides": [*kept, *(f"{key}={value}" for key, value in sizes.items())]}
    (folder / "job.json").write_text(json.dumps(job))


def largest(names: list[str], folder: Path, rows: int, most: int) -> dict[str, int]:
    """The most rows, doubled each time, with which each still trains."""
    found = dict.fromkeys(names, rows)
    alive = list(names)
    while alive and rows < most:
        rows *= 2
        enlarge(folder, rows)
        for name in list(alive):
            try:
                run(name, folder, rows)
                found[name] = rows
            except SystemExit as failed:
                if "out of memory" not in str(failed):
                    raise
                alive.remove(name)
    return found


def main() -> None:
    options = ask(__doc__)
    question = rehearsed(QUESTION) if options.rehearse else QUESTION
    results = race(question, options.device, 1)
    with TemporaryDirectory() as folder:
        make_job(question, Path(folder), options.device)
        names = list(results["contenders"])
        sizes = largest(names, Path(folder), question.micro_batch, 2 * question.micro_batch if options.rehearse else MOST)
    for name, rows in sizes.items():
        results["contenders"][name]["largest_micro_batch"] = rows
        print(f"{name}: {rows} rows fit")
    keep(QUESTION.name, results, options)


if __name__ == "__main__":
    main()
