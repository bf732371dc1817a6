"""``isotrain evaluate``: the held-out metrics of a checkpoint or of a Hugging Face folder, on any number of ranks, under any strategy."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from rich.table import Table
from transformers import PreTrainedConfig

from trainer.assembly import build_engine, build_evaluator, open_job
from trainer.callbacks.summary import print_examples, print_facts
from trainer.checkpoint import verify
from trainer.checkpoint.files import write_atomically
from trainer.checkpoint.find import choose, read_run_state
from trainer.commands.request import Request, config_of
from trainer.config import Config
from trainer.data.tokenizer import same_vocabulary
from trainer.distributed.agreement import Agreement
from trainer.distributed.launch import Launch
from trainer.distributed.process_group import choose_device, start_process_group, stop_process_group
from trainer.distributed.stop import Signals, end_process
from trainer.errors import DONE, REFUSED, STOPPED, STORAGE, Failure, Refused, StorageFailed, TrainingFailed
from trainer.model.config import Model
from trainer.model.pretrained import read_config
from trainer.session.facts import model_facts
from trainer.session.identity import identity
from trainer.session.job import Job
from trainer.state.storage import read_state
from trainer.types import Evaluation, RunState, Vocabulary

Result = TypeVar("Result")


def run(request: Request, launch: Launch) -> int:
    """Evaluates and prints the metrics; collective.

    Args:
        request: the command line.
        launch: who this process is.

    Returns:
        The exit code.

    Raises:
        Refused, StorageFailed: also what ``trainer.assembly.open_job`` and ``trainer.checkpoint.find.choose`` raise.
    """
    Signals(lambda name: end_process(STOPPED, f"Stopped by {name}; nothing was written.", launch.local_rank == 0))
    store = start_process_group(launch, choose_device(request.meeting.device, launch), request.meeting.timeout)
    try:
        agreement = Agreement(store, launch.rank, launch.world_size)
        if request.config is not None:
            config = request.config
            _evaluate(request, _together(agreement, lambda: open_job(config, launch)), None, None)
        else:
            _evaluate(request, *_open_checkpoint(request, launch, agreement))
    except Failure as failure:
        if failure.speaker is None:  # found by every rank
            failure.speaker = launch.rank == 0
        raise
    finally:
        stop_process_group()
    return DONE


def _together(agreement: Agreement, phase: Callable[[], Result]) -> Result:
    """Runs what each rank does alone on all of them; the first failure of any is raised on every one, and told by one."""
    result, failure = None, None
    try:
        result = phase()
    except Failure as error:
        failure = error
    said = agreement.gather(None if failure is None else [failure.code, str(failure)])
    first = next((rank for rank, problem in enumerate(said) if problem), None)
    if first is None:
        return result  # type: ignore[return-value]
    code, sentence = said[first]
    failure = failure or {REFUSED: Refused, STORAGE: StorageFailed}.get(code, TrainingFailed)(sentence)
    failure.speaker = agreement.rank == first
    raise failure


def _open_checkpoint(request: Request, launch: Launch, agreement: Agreement) -> tuple[Job, Path, RunState]:
    """The job of the newest whole checkpoint; every rank hashes its share of the files."""
    source = Path(request.settings.checkpoint or "")
    if blind := [rank for rank, sees in enumerate(agreement.gather(source.is_dir())) if not sees]:
        who = "" if len(blind) == launch.world_size else f" on rank {', '.join(map(str, blind))}"
        raise Refused(f"checkpoint={source} is not a folder{who}: give a run directory, or a folder checkpoints/step-N inside of one.")
    if (source / "config.json").is_file():
        raise Refused(
            f"checkpoint={source} is a Hugging Face folder: evaluate it with model=pretrained model.path={source}, and say with data=... "
            "and objective=... on what."
        )

    def check(folder: Path) -> list[str]:
        found = agreement.gather(verify.problems(folder, (launch.rank, launch.world_size)))
        return sorted({problem for part in found for problem in part})

    folder, skipped = choose(source, check)
    state = _together(agreement, lambda: read_run_state(folder))
    config, other_data = _together(agreement, lambda: config_of(folder, request.arguments, launch.world_size, request.config_dir))
    job = _together(agreement, lambda: _open_job(config, launch, folder, state, other_data))
    for line in skipped:
        job.say(line)
    return job, folder, state


def _open_job(config: Config, launch: Launch, folder: Path, state: RunState, other_data: bool) -> Job:
    """As the run's config says, if that still makes the checkpoint's model and tokenizer; else with those that the checkpoint keeps.

    Pretrained folders may be gone or changed by now, and a tokenizer that is trained on other data is another one.
    """
    job = None
    if not other_data:
        try:
            job = open_job(config, launch)
        except Refused:
            if type(config.model).fetch is Model.fetch:
                raise
    if job is None or not _is_of(job, folder, state):
        model = _Kept(config.model.attention, folder / "model")
        tokenizer = replace(config.data.tokenizer, path=str(folder / "tokenizer"))
        job = open_job(replace(config, model=model, data=replace(config.data, tokenizer=tokenizer)), launch)
    names = read_config(folder / "model").id2label
    trained = tuple(names[number] for number in sorted(names or ()))
    if job.corpus.labels is not None and job.corpus.labels != trained:
        raise Refused(
            f"The checkpoint tells {len(trained)} classes apart ({_few(trained)}), the data has {len(job.corpus.labels)} "
            f"({_few(job.corpus.labels)}): they must be the same. Leave data.path as it was, and name held-out records with data.validation_path."
        )
    return job


@dataclass
class _Kept(Model):
    """The model that a checkpoint describes, whose weights are read into the engine."""

    folder: Path = Path()

    def config_for(self, vocabulary: Vocabulary, folders: dict[str, Path]) -> PreTrainedConfig:
        return read_config(self.folder)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _is_of(job: Job, folder: Path, state: RunState) -> bool:
    model = identity(job.config, job.skeleton.model.config, job.corpus.fingerprint)["model"]
    return model == state.identity.get("model") and same_vocabulary(job.corpus.tokenizer_folder, folder / "tokenizer")


def _evaluate(request: Request, job: Job, checkpoint: Path | None, state: RunState | None) -> None:
    """Everything behind the gates."""
    to = request.settings.to
    held_out = {name: len(samples) for name, samples in job.corpus.samples("validation").parts.items()}
    if not sum(held_out.values()):
        raise Refused("There is nothing to evaluate on, because no sample is held out: raise data.validation_fraction.")
    facts = (
        _classes(job, checkpoint)
        | model_facts(job, fresh=checkpoint is None)
        | {"precision": f"compute {job.config.precision.compute}; weights and loss fp32"}
    )
    engine = build_engine(job, resumed=checkpoint is not None, learns=False)
    if checkpoint:
        engine.load_state(lambda state: read_state(checkpoint, {name: state[name] for name in state if name.startswith("model.")}))
    most = job.config.train.evaluate_samples
    taken = sum(min(most, size) for size in held_out.values())
    source = str(checkpoint or next(iter(job.skeleton.folders.values())))
    facts = {
        "weights": source + (f" after step {state.step:,}" if state else ""),
        **facts,
        "samples": f"{taken:,} of {sum(held_out.values()):,} held out (train.evaluate_samples={most})",
    }
    if written := _written(job, held_out):
        facts["written"] = f"targets for {written:,} of them are compared (train.evaluate_generate={job.config.train.evaluate_generate})"
    print_facts(job.console, "isotrain evaluate", facts)
    evaluator = build_evaluator(job, engine)
    assert evaluator is not None, "something is held out"
    evaluation = evaluator.evaluate(state.step if state else 0)
    engine.close()
    _print(job, evaluation)
    if to and job.launch.rank == 0:
        _write(
            Path(to), {"weights": source, "step": state.step if state else None, "num_samples": taken, "num_written": written}, evaluation
        )
        job.say(f"written to {to}")


def _written(job: Job, held_out: dict[str, int]) -> int:
    """For how many samples a model that writes does so; 0: it does not."""
    train, writes = job.config.train, getattr(job.config.objective, "writes", False)
    return sum(min(train.evaluate_generate, train.evaluate_samples, size) for size in held_out.values()) if writes else 0


def _classes(job: Job, checkpoint: Path | None) -> dict[str, str]:
    """A warning where a folder calls its classes otherwise than the data does: nobody can tell whether their order is the same."""
    if checkpoint or not job.corpus.labels or job.weights.new:
        return {}
    theirs = read_config(next(iter(job.skeleton.folders.values()))).id2label or {}
    pairs = [(theirs[number], name) for number, name in enumerate(job.corpus.labels)]
    if all(name == own or name == f"LABEL_{number}" for number, (name, own) in enumerate(pairs)):
        return {}
    return {"classes": "taken by their order: " + _few([f"{name} of the folder is {own} of the data" for name, own in pairs])}


def _print(job: Job, evaluation: Evaluation) -> None:
    table = Table("metric", "value", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for name, value in evaluation.metrics.items():
        table.add_row(name, f"{value:.4f}")
    job.console.print(table, highlight=False)
    job.say(f"over {evaluation.num_targets:,} targets")
    if evaluation.examples:
        print_examples(job.console, evaluation.examples)


def _write(path: Path, about: dict[str, Any], evaluation: Evaluation) -> None:
    """Metrics as JSON, which has no NaN and no infinity: such a value is null, and named under ``nonfinite``."""
    metrics = {name: value if math.isfinite(value) else None for name, value in evaluation.metrics.items()}
    nonfinite = {name: str(value) for name, value in evaluation.metrics.items() if not math.isfinite(value)}
    told = {**about, "num_targets": evaluation.num_targets, "metrics": metrics, **({"nonfinite": nonfinite} if nonfinite else {})}
    try:
        write_atomically(path, (json.dumps(told, indent=1) + "\n").encode())
    except OSError as error:
        raise StorageFailed(f"to={path} cannot be written: {error.strerror or error}. The metrics are printed above.") from error
