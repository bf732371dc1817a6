"""Writes the results' table into benchmarks/README.md from the JSON files, so that its numbers are never typed.

python benchmarks/table.py
"""

import importlib
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # where this is loaded by its path

BEGIN, END = "<!-- table: written by benchmarks/table.py -->", "<!-- end of table -->"
GPU_BEGIN, GPU_END = "<!-- gpu: written by benchmarks/table.py -->", "<!-- end of gpu -->"
GPU_HEADER = ("benchmark", "plan", "question", "goal", "measured", "met", "date", "device", "command")
GPU = (
    "gpu_gpt2",
    "gpu_llama",
    "gpu_llama_long",
    "gpu_memory",
    "gpu_gpt2_xl",
    "gpu_bert",
    "gpu_bert_short",
    "gpu_bert_dropout",
    "gpu_bert_large",
    "gpu_t5",
    "gpu_packing",
    "gpu_checkpoint",
    "gpu_first_step",
    "gpu_overhead",
)
"""Those with goals; benchmarks/gpu_probe.py has none."""
HEADER = ("benchmark", "question", "target", "measured (median)", "met", "date", "machine", "command")
MOST_OF_TRAINER = 1 / 3
Row = tuple[str, str, str, bool | None]
"""Question, target, what was measured, and whether it meets the target; None: there is no target."""


def loader(result: dict[str, Any]) -> Iterator[Row]:
    target, seek = result["target_tokens_per_second_per_core"], result["target_seek_seconds"]
    for shape in result["shapes"]:
        speed = shape["tokens_per_second_per_core"]
        size = f"{shape['global_batch']} x {shape['sequence_length']} tokens a step, {shape['micro_batch']} rows a micro-batch"
        is_long = shape["sequence_length"] >= 1024  # for short rows a step's fixed cost says more than the tokens'
        goal = f">= {target / 1e6:.0f} M tokens/s" if is_long else "none"
        yield f"Micro-batches per core: {size}", goal, f"{speed / 1e6:.1f} M tokens/s", speed >= target if is_long else None
    slowest = max(shape["seek_seconds"]["median"] for shape in result["shapes"])
    yield "Wall time to find step 1,000,000, slowest shape", f"<= {seek:g} s", f"{slowest * 1e3:.2f} ms", slowest <= seek


def prepare(result: dict[str, Any]) -> Iterator[Row]:
    speed, slots = result["target_speed_ratio"], result["target_slots_used"]
    for name, corpus in result["corpora"].items():
        wall, cpu = (corpus["speed_ratio"][clock] for clock in ("wall_seconds", "cpu_seconds"))
        measured = f"{wall:.2f} ({cpu:.2f} by CPU time)"
        yield f"Speed of preparing over that of a bare tokenizers loop: {name}", f">= {speed:g}", measured, min(wall, cpu) >= speed
        used = corpus["slots_used"]
        shares = ", ".join(f"{share:.2%} ({objective})" for objective, share in used.items())
        yield f"Slots of packed rows with a token: {name}", f">= {slots:.0%}", shares, min(used.values()) >= slots


def overhead(result: dict[str, Any]) -> Iterator[Row]:
    target = result["target_seconds_over_hand_loop"]
    for name, row in result["contenders"].items():
        measured = f"{row['median'] * 1e3:.2f} ms (lowest {row['lowest'] * 1e3:.2f})"
        over = row["median_over_hand_loop"]
        if name == "hand loop":
            yield f"CPU time per step: {name}", "none", measured, None
            continue
        measured += f", {over * 1e3:+.2f} over the loop"
        is_ours = name == "isotrain"
        goal = f"<= {target * 1e3:g} ms over the loop" if is_ours else "none"
        yield f"CPU time per step: {name}", goal, measured, over <= target if is_ours else None
    ours, peer = (result["contenders"][name]["median_over_hand_loop"] for name in ("isotrain", "transformers.Trainer"))
    yield (
        "What a step of ours takes over the loop, of what transformers.Trainer takes over it",
        f"<= {MOST_OF_TRAINER:.2f} x",
        f"{ours * 1e3:.2f} of {peer * 1e3:.2f} ms: {ours / peer:.2f} x",
        ours <= MOST_OF_TRAINER * peer,
    )


def instructions(result: dict[str, Any]) -> Iterator[Row]:
    rows = result["contenders"]
    for name, row in rows.items():
        over = "" if name == "hand loop" else f", {row['over_hand_loop'] / 1e6:+.2f} over the loop"
        yield f"Machine instructions per step: {name}", "none", f"{row['per_step'] / 1e6:.2f} M{over}", None
    ours, peer = (rows[name]["over_hand_loop"] for name in ("isotrain", "transformers.Trainer"))
    yield (
        "What a step of ours takes over the loop, of what transformers.Trainer takes over it, in instructions",
        f"<= {MOST_OF_TRAINER:.2f} x",
        f"{ours / 1e6:.2f} of {peer / 1e6:.2f} M",
        ours <= MOST_OF_TRAINER * peer,
    )


def zero(result: dict[str, Any]) -> Iterator[Row]:
    target = result["target_seconds_over_bare_loop"]
    for name, stage in result["stages"].items():
        ours, theirs = (statistics.median(stage[who]["rounds"]) * 1e3 for who in ("isotrain", "deepspeed"))
        over = stage["median_over_bare_loop"]
        measured = f"{ours:.2f} ms, the bare loop {theirs:.2f}: {over * 1e3:+.2f}"
        question = f"CPU time per step of {name} on one rank, and of a bare loop over `deepspeed.initialize`"
        yield question, f"<= {target * 1e3:g} ms over the loop", measured, over <= target


def traffic(result: dict[str, Any]) -> Iterator[Row]:
    target = result["target_ratio"]
    for case in result["cases"]:
        ratio, is_ours = case["models"] / case["formula"], case["more"] is not None
        times = case["accumulation"]
        question = f"Bytes that a rank sends per optimizer step, in models: {case['name']}, {case['ranks']} ranks, {times} micro-batch{'es' if times > 1 else ''}"
        goal = f"<= {target:g} x the formula's {case['formula']:.4g}" if is_ours else "none"
        yield question, goal, f"{case['models']:.4f}: {ratio:.4f} x", ratio <= target if is_ours else None


def load_peak(result: dict[str, Any]) -> Iterator[Row]:
    for moment, row in result["moments"].items():
        ratio, target = row["peak"] / row["formula"], row["target_ratio"]
        question = f"Memory of a rank at the peak of `strategy=fsdp` from a pretrained folder, {result['setting']['ranks']} ranks: {moment}"
        goal = f"<= {target:g} x {row['formula'] / 1e6:.0f} MB (its shard, and the largest tensor)" if target else "none"
        yield question, goal, f"{row['peak'] / 1e6:.0f} MB: {ratio:.2f} x", ratio <= target if target else None


def first_step(result: dict[str, Any]) -> Iterator[Row]:
    target, medians = result["target_ratio"], result["medians"]
    for clock, words in (("wall_seconds", "Wall time"), ("cpu_seconds", "CPU time")):
        ours, theirs, ratio = medians["isotrain"][clock], medians["transformers.Trainer"][clock], result["ratios"][clock]
        question = f"{words} from the start of the process to the first step of a pretrained model, and of `transformers.Trainer`"
        yield question, f"<= {target:g} x its", f"{ours:.2f} s, its {theirs:.2f} s: {ratio:.2f} x", ratio <= target


def pipeline(result: dict[str, Any]) -> Iterator[Row]:
    rows, target = result["schedules"], result["target_ratio"]
    for name, row in rows.items():
        measured, question = f"{row['bubble']:.1%}", f"Bubble of a pipeline of {result['setting']['ranks']} stages' ranks under `{name}`"
        if name in result["judged"]:
            ratio = row["bubble"] / row["expected"]
            yield question, f"<= {target:g} x the formula's {row['expected']:.1%}", f"{measured}: {ratio:.2f} x", ratio <= target
        else:
            yield question, "below `1f1b`'s", measured, row["bubble"] < rows["1f1b"]["bubble"]


def vocabulary(result: dict[str, Any]) -> Iterator[Row]:
    target, setting = result["target_ratio"], result["setting"]
    where = f"{setting['vocabulary']:,} words, {setting['tokens']:,} tokens"
    for precision, row in result["precisions"].items():
        dense, chunked = row["heads"]["dense"], row["heads"]["chunked"]
        ratio = row["step_bytes_ratio"]
        measured = f"{chunked['step_bytes'] / 1e9:.2f} of {dense['step_bytes'] / 1e9:.2f} GB: {ratio:.2f} x"
        yield (
            f"Memory of a step with `train.cross_entropy=chunked`, of that with `dense`: {where}, {precision}",
            f"<= {target:g} x",
            measured,
            ratio <= target,
        )
        processes = f"{chunked['process_bytes'] / 1e9:.2f} of {dense['process_bytes'] / 1e9:.2f} GB: {row['process_bytes_ratio']:.2f} x"
        yield f"The same of the whole process, {precision}", "none", processes, None
        times = f"{chunked['seconds']:.1f} of {dense['seconds']:.1f} s: {row['seconds_ratio']:.2f} x"
        yield f"Time of that step, {precision}", "none", times, None


def compiled(result: dict[str, Any]) -> Iterator[Row]:
    ways, setting = result["ways"], result["setting"]
    times = f"{ways['compiled']['step'] * 1e3:.0f} of {ways['eager']['step'] * 1e3:.0f} ms: {result['ratio']:.2f} x"
    yield f"CPU time of a step with `train.compile=true`, of that without: {setting['model']}", "none", times, None
    yield "CPU time that compiling adds to the first step, nothing cached", "none", f"{result['seconds_to_compile']:.0f} s", None


def checkpoint(result: dict[str, Any]) -> Iterator[Row]:
    targets = result["targets"]
    for ranks, row in result["ranks"].items():
        found, on = row["contenders"], f"{ranks} rank{'s' if int(ranks) > 1 else ''}, {row['state_bytes'] / 1e6:.0f} MB"
        ours, waiting = found["background"], found["waiting"]
        seconds = f"{ours['blocked']:.3f} s of {waiting['blocked']:.3f}: {row['blocked_ratio']:.0%}"
        goal = f"<= {targets['blocked']:.0%} of waiting"
        yield f"What a checkpoint in the background keeps training from ({on})", goal, seconds, row["blocked_ratio"] <= targets["blocked"]
        speed = ours["median_speed"]
        yield (
            f"Speed of steps while it is written, over that before ({on})",
            f">= {targets['speed']}",
            f"{speed:.2f}",
            speed >= targets["speed"],
        )
        share = row["hashing_share"]
        yield (
            f"Share of hashing in a save that is waited for ({on})",
            f"<= {targets['hashing']:.0%}",
            f"{share:.1%}",
            share <= targets["hashing"],
        )
        disk = row["bytes_on_disk_ratio"]
        yield f"Bytes on the disk over those of the state ({on})", f"<= {targets['bytes']} x", f"{disk:.3f} x", disk <= targets["bytes"]
        for name in ("torch.save by rank 0", "dcp.async_save in a thread"):
            one = found[name]
            while_writing = f", speed while writing {one['median_speed']:.2f}" if one["median_speed"] else ""
            yield f"What {name} keeps training from ({on})", "none", f"{one['blocked']:.3f} s{while_writing}", None


def startup(result: dict[str, Any]) -> Iterator[Row]:
    questions = {
        "help": "CPU time of `python train.py --help`",
        "refused": "CPU time of a refused configuration",
        "first_step": "CPU time of a tiny run of one step, checkpoint included",
    }
    for name, question in questions.items():
        row = result["commands"][name]
        target = row["target_seconds"]
        yield question, f"<= {target:g} s" if target else "none", f"{row['median']:.2f} s", row["median"] <= target if target else None


def default_run(result: dict[str, Any]) -> Iterator[Row]:
    targets, samples = result["targets"], result["samples_with_a_python_line"]
    fell = result["last_loss"] < targets["last_loss_below"]
    yield (
        "`make train`: loss, first step to mean of the last 20",
        "halved",
        f"{result['first_loss']:.2f} to {result['last_loss']:.2f}",
        fell,
    )
    in_time = result["training_seconds"] <= targets["training_seconds_at_most"]
    yield "`make train`: time in training", f"<= {targets['training_seconds_at_most']} s", f"{result['training_seconds']:.0f} s", in_time
    least = targets["samples_per_20_at_least"]
    for prompt, number in samples["by_prompt"].items():
        judged = not prompt
        after = f"after {json.dumps(prompt)}" if prompt else "from the beginning of a document"
        question = f"Of 20 samples of 128 tokens {after}, with a line of Python code"
        yield question, f">= {least}" if judged else "none", f"{number:.1f}", number >= least if judged else None
    yield "Of 20 real documents' first 128 tokens, with such a line", "none", f"{samples['real_documents_per_20']:.1f}", None


def minilm_vader(result: dict[str, Any]) -> Iterator[Row]:
    target, accuracies = result["target_accuracy"], [run["accuracy"] for run in result["runs"]]
    question = f"`experiment=minilm_vader`: accuracy on {result['held_out_sentences']:,} held-out sentences (majority {result['majority_accuracy']:.1%})"
    measured = f"{result['mean_accuracy']:.1%} (by seed: {', '.join(f'{accuracy:.1%}' for accuracy in accuracies)})"
    yield question, f">= {target:.0%}", measured, min(accuracies) >= target


def docstrings(result: dict[str, Any]) -> Iterator[Row]:
    functions = f"{result['held_out_functions']:,} held-out functions"
    yield f"`experiment=t5_docstrings` at a size for CPU: ROUGE-L on {functions}", "none", f"{result['rouge_l']:.3f}", None
    for name, value in result["baselines_rouge_l"].items():
        yield f"ROUGE-L of a guess without training: {name.replace('_', ' ')}", "none", f"{value:.3f}", None


ROWS: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    "loader": loader,
    "prepare": prepare,
    "overhead": overhead,
    "instructions": instructions,
    "zero": zero,
    "pipeline": pipeline,
    "vocabulary": vocabulary,
    "compile": compiled,
    "traffic": traffic,
    "checkpoint": checkpoint,
    "startup": startup,
    "first_step": first_step,
    "load_peak": load_peak,
    "default_run": default_run,
    "minilm_vader": minilm_vader,
    "docstrings": docstrings,
}


def table(results: Path) -> str:
    """The whole table, from the JSON files in ``results``."""
    lines = [_line(HEADER), _line(["---"] * len(HEADER))]
    for name, rows in ROWS.items():
        result = json.loads((results / f"{name}.json").read_text())
        machine = f"{result['machine']['processor']}, {result['machine']['cores']} cores, load {result['machine']['load']:.1f}"
        for question, target, measured, met in rows(result):
            answer = "" if met is None else "yes" if met else "**no**"
            lines.append(_line([name, question, target, measured, answer, result["date"], machine, f"`python benchmarks/{name}.py`"]))
    return "\n".join(lines)


def gpu_table(results: Path) -> str:
    """The goals of the GPU benchmarks, with what was measured where a result is there."""
    lines = [_line(GPU_HEADER), _line(["---"] * len(GPU_HEADER))]
    for name in GPU:
        question, path = importlib.import_module(name).QUESTION, results / f"{name}.json"
        result = json.loads(path.read_text()) if path.is_file() else None
        for number, goal in enumerate(question.goals):
            judged = result["goals"][number] if result else {"value": None}
            value, met = judged["value"], judged.get("met")
            measured = "not yet measured" if value is None else f"{value:.1%}" if goal.number == "mfu" else f"{value:,.4g}"
            if result and result.get("unsteady"):
                measured += f" (unsteady: {', '.join(result['unsteady'])})"
            answer = "" if met is None else "yes" if met else "**no**"
            where = (result["date"], result["device"]) if result else ("", "")
            said = f"{goal.number.replace('_', ' ')} {goal.words}"
            lines.append(_line([name, question.ident, question.what, said, measured, answer, *where, f"`python benchmarks/{name}.py`"]))
    return "\n".join(lines)


def with_table(page: str, results: Path) -> str:
    """``page`` with what stands between the marks of both tables replaced."""
    page = _between(page, BEGIN, END, table(results))
    return _between(page, GPU_BEGIN, GPU_END, gpu_table(results))


def _between(page: str, begin: str, end: str, lines: str) -> str:
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{lines}\n\n{end}{rest.split(end)[1]}"


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    readme = HERE / "README.md"
    readme.write_text(with_table(readme.read_text(), HERE / "results"))
