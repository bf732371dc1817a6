"""G12: from the start of the process to the first optimizer step with compilation, cold and warm, beside transformers.Trainer, on one GPU.

    python benchmarks/gpu_first_step.py [--rehearse]

Llama 1.1B, 4 rows of 2,048 tokens. Cold is with an empty cache of inductor's, warm the same command again. Ours compiles block by block; the
peer compiles its whole model.
"""

import json
import os
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from first_step import DONE, until_first_step
from gpu_llama import QUESTION as LLAMA
from gpu_race import Goal, ask, keep, make_job, measured_on, rehearsed

QUESTION = replace(
    LLAMA,
    name="gpu_first_step",
    ident="G12",
    what="Llama 1.1B, compiled: seconds from the start of the process to the first step",
    micro_batch=4,
    steps=10,
    faster=("train.compile=true",),
    goals=(
        Goal("cold_seconds", at_most=45),
        Goal("warm_seconds", at_most=20),
        Goal("cold_seconds", "transformers.Trainer", at_most=1.0),
    ),
)


def peer(folder: Path) -> None:
    """``transformers.Trainer`` with a compiled model, which says when its first step is done."""
    import gpu_contenders

    class Says(gpu_contenders.Record):
        def done(self, loss: object) -> None:
            float(loss)  # type: ignore[arg-type]
            print(DONE, flush=True)

    gpu_contenders.Record = Says  # type: ignore[misc]
    gpu_contenders.transformers_trainer(json.loads((folder / "job.json").read_text()), ["compiled"])


def main() -> None:
    if sys.argv[1:2] == ["--peer"]:
        peer(Path(sys.argv[2]))
        return
    options = ask(__doc__)
    question = rehearsed(QUESTION) if options.rehearse else QUESTION
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        setting = make_job(question, folder, options.device)
        job = json.loads((folder / "job.json").read_text())
        for number in range(options.rounds):
            for who in ("isotrain", "transformers.Trainer"):
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / f"inductor-{who}-{number}")
                os.environ["TRITON_CACHE_DIR"] = str(folder / f"triton-{who}-{number}")
                for moment in ("cold_seconds", "warm_seconds"):
                    run_dir = folder / f"{who}-{moment}-{number}"
                    arguments = [*job["overrides"], *job["faster"], "train.log_every=1", f"run.dir={run_dir}"]
                    kept = {argument.partition("=")[0]: argument for argument in arguments}
                    ours = [sys.executable, "train.py", *kept.values()]
                    taken = until_first_step(ours if who == "isotrain" else [sys.executable, __file__, "--peer", name])
                    found.setdefault(who, {}).setdefault(moment, []).append(taken["wall_seconds"])
                    print(f"{who} {moment}: {taken['wall_seconds']:.1f}", flush=True)
    contenders = {who: {moment: statistics.median(values) for moment, values in moments.items()} for who, moments in found.items()}
    results = {
        "what": question.what,
        **measured_on(options.device),
        "setting": {**setting, "rounds": options.rounds},
        "rounds": found,
        "contenders": contenders,
        "goals": [goal.judge(contenders) for goal in question.goals],
    }
    keep(question.name, results, options)


if __name__ == "__main__":
    main()
