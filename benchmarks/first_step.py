"""How long it is from the start of the process to the first optimizer step of a pretrained model, with transformers.Trainer beside it.

    python benchmarks/first_step.py [--rounds 5]

Both are fresh processes with warm file caches that take turns: ours is ``train.py`` over a prepared corpus, with the metrics, checks and run
directory that it has by default; the peer is a script of Trainer's guide whose batches lie ready in a file, so that it reads no text. Each
prints a line when the first step is done; the wall time until that line arrives and the CPU time of the process then are taken, and the
process is ended. The model is the one of benchmarks/overhead.py, two Llama blocks of width 32, so that almost all of it is start-up.

Prints the numbers and writes benchmarks/results/first_step.json. Needs no GPU, and Linux.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import machine

HERE = Path(__file__).parent
TARGET = 0.9
DONE = "step 1"


def peer(job: Path) -> None:
    """``transformers.Trainer`` from the same folder, on the same rows."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    torch.set_num_threads(1)
    tensors = load_file(job / "batches.safetensors")
    rows = [{"input_ids": row, "labels": row} for row in tensors["input_ids"].flatten(0, 1)]

    class Say(TrainerCallback):
        def on_step_end(self, *given: object, **named: object) -> None:
            print(DONE, flush=True)

    arguments = TrainingArguments(
        output_dir=str(job / "peer"),
        max_steps=10,
        per_device_train_batch_size=tensors["input_ids"].shape[1],
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    Trainer(AutoModelForCausalLM.from_pretrained(job / "pretrained"), arguments, train_dataset=rows, callbacks=[Say()]).train()


def until_first_step(command: list[str]) -> dict[str, float]:
    """Wall and CPU seconds of a fresh process until it has said that its first step is done."""
    variables = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    with tempfile.TemporaryFile("w+") as errors:
        begun = time.monotonic()
        with subprocess.Popen(
            command, cwd=HERE.parent, env={**variables, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(DONE):
                    wall = time.monotonic() - begun
                    user, system = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
                    process.kill()
                    return {"wall_seconds": wall, "cpu_seconds": (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")}
        errors.seek(0)
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode} before its first step:\n{errors.read()[-4000:]}")


def make(folder: Path) -> list[str]:
    """Writes the model, the rows and the prepared corpus; returns the overrides of our run."""
    from overhead import make_job
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig

    from trainer.testing import last_wins, prepared

    make_job(folder, steps=10)
    overrides = json.loads((folder / "overrides.json").read_text())
    _, corpus = prepared(overrides)
    pretrained = folder / "pretrained"
    shutil.copytree(corpus.tokenizer_folder, pretrained)
    shape = AutoConfig.from_pretrained(folder / "model")
    shape.architectures = ["LlamaForCausalLM"]
    shape.save_pretrained(pretrained)
    save_file(load_file(folder / "weights.safetensors"), pretrained / "model.safetensors", {"format": "pt"})
    kept = [override for override in overrides if not override.startswith(("model", "data.tokenizer"))]
    return last_wins([*kept, "model=pretrained", f"model.path={pretrained}", "train.steps=10", "train.log_every=1"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        peer(options.peer)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        overrides = make(folder)
        rounds: dict[str, list[dict[str, float]]] = {"isotrain": [], "transformers.Trainer": []}
        for number in range(options.rounds + 1):
            commands = {
                "isotrain": [sys.executable, "train.py", *overrides, f"run.dir={folder}/run-{number}"],
                "transformers.Trainer": [sys.executable, __file__, "--peer", str(folder)],
            }
            for who in sorted(commands, reverse=bool(number % 2)):
                rounds[who].append(until_first_step(commands[who]))
            if number == 0:  # warms the file caches and prepares the corpus
                rounds = {who: [] for who in rounds}
                continue
            print(
                ", ".join(f"{who} {taken[-1]['wall_seconds']:.2f} s ({taken[-1]['cpu_seconds']:.2f} CPU)" for who, taken in rounds.items())
            )
    medians = {who: {key: statistics.median(one[key] for one in taken) for key in taken[0]} for who, taken in rounds.items()}
    ratios = {key: medians["isotrain"][key] / medians["transformers.Trainer"][key] for key in medians["isotrain"]}
    results = {
        "what": "seconds from the start of a fresh process to the end of its first optimizer step; medians",
        **machine("torch", "transformers", "hydra-core"),
        "target_ratio": TARGET,
        "rounds": rounds,
        "medians": medians,
        "ratios": ratios,
    }
    print(", ".join(f"{key}: {ratio:.2f} x" for key, ratio in ratios.items()))
    (HERE / "results" / "first_step.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
