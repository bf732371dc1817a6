"""The composition root: builds a run in one visible order, then lets the Trainer go."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from trainer.assembly import build_engine, build_evaluator, build_loader, build_stream, open_job, require_schedule, stream_states
from trainer.callbacks.console import PlainLines, ProgressBar
from trainer.callbacks.jsonl import JsonLines, sample_line
from trainer.callbacks.profiler import Profiler
from trainer.callbacks.ranks import Ranks
from trainer.callbacks.report import RunReport
from trainer.callbacks.summary import print_examples, print_facts, print_sample
from trainer.callbacks.throughput import Throughput, peak_of
from trainer.callbacks.tracking import trackers
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.checkpoint.find import find
from trainer.command_line.defaults import default_values
from trainer.command_line.plugins import versions
from trainer.config import Config
from trainer.distributed.agreement import Agreement
from trainer.distributed.launch import Launch
from trainer.distributed.lifetime import Member
from trainer.distributed.log import LOGGER, log_to
from trainer.distributed.process_group import start_process_group
from trainer.distributed.stop import Signals, StopRequest, listen
from trainer.errors import DONE, STOPPED, Refused
from trainer.metrics import MetricsFile
from trainer.model.flops import Flops, flops_of
from trainer.model.generation import generate_text
from trainer.model.weights import named_seed
from trainer.optimizer.schedule import lr_scale
from trainer.protocols import Callback, Engine
from trainer.run_directory import RunDirectory, fresh
from trainer.session.ending import Ending, recorded_exit
from trainer.session.facts import axes, closing_facts, opening_facts, strategy_name, unit
from trainer.session.identity import identity, require_one_run, require_same, require_same_ranks
from trainer.session.job import Job
from trainer.session.passport import environment
from trainer.session.saving import Saving
from trainer.state.storage import read_state
from trainer.trainer import Outcome, Plan, Trainer
from trainer.types import RunState


def train(config: Config, launch: Launch, signals: Signals | None = None) -> int:
    """Runs one session of training.

    Args:
        config: checked.
        launch: who this process is.
        signals: what the command line has listened with from the start; None: listening begins here.

    Returns:
        The exit code: 0 done, 4 stopped on request after saving.

    Raises:
        Refused, TrainingFailed, StorageFailed: already written to ``exit.json``; printing them is the caller's.
    """
    signals = signals or listen(launch)
    require_schedule(config, launch.world_size)
    job = open_job(config, launch)
    directory = _open_directory(config) if launch.rank == 0 else None
    with recorded_exit(launch, directory, signals) as ending:
        ending.store = start_process_group(launch, job.device, config.run.timeout)
        agreement = Agreement(ending.store, launch.rank, launch.world_size)
        path = agreement.from_first(str(directory.path) if directory else None)
        ending.directory = directory = directory or RunDirectory(path, config.run.dir is not None)
        _require_shared(directory, agreement)
        log_to(directory.log(launch.rank), launch.rank)
        report = RunReport(directory.path, default_values, job.say)
        ending.report = report.write if launch.rank == 0 else ending.report
        ending.members = [Member(**member) for member in agreement.gather(asdict(Member.here(launch.rank)))]
        ending.code, ending.sentence = _session(job, directory, agreement, ending, report)
    return ending.code


def _open_directory(config: Config) -> RunDirectory:
    directory = RunDirectory(config.run.dir or fresh(config.run.name), config.run.dir is not None)
    directory.create()
    directory.lock()
    return directory


def _require_shared(directory: RunDirectory, agreement: Agreement) -> None:
    blind = [rank for rank, sees in enumerate(agreement.gather((directory.path / ".lock").exists())) if not sees]
    if blind:
        raise Refused(
            f"run.dir={directory.path} was made by rank 0 and cannot be seen by rank {', '.join(map(str, blind))}: "
            "choose one on a file system that all machines share, and start all ranks in the same folder."
        )


def _session(job: Job, directory: RunDirectory, agreement: Agreement, ending: Ending, report: RunReport) -> tuple[int, str]:
    """Everything between meeting and parting; returns the exit code and sentence."""
    config, launch = job.config, job.launch
    stop = StopRequest(agreement.store, ending.without_saving)
    ending.hand_signals_to(stop)
    surroundings = environment(job.device, launch.world_size)
    found = find(directory.checkpoints, agreement, config.checkpoint.resume, job.say)
    same = identity(config, job.skeleton.model.config, job.corpus.fingerprint)
    require_one_run(agreement.gather({**same, "the configuration": job.written_config}))
    if found:
        require_same(found[1], same, found[0])
        require_same_ranks(found[1], config.strategy.degrees(launch.world_size).data, found[0])
    state = found[1] if found else RunState(step=0, identity=same, tokens_seen=0, metrics_bytes=0)
    plan = _plan(config)
    if state.step >= plan.stop_after:
        return _nothing_left(job, directory, state, plan)

    flops = flops_of(job.skeleton)  # before an engine takes the model apart
    engine = build_engine(job, resumed=found is not None)
    if found:
        engine.load_state(partial(read_state, found[0]))
        job.say(f"resuming from {found[0]} at step {state.step}")
    own = bool(found and found[0].is_relative_to(directory.path))
    metrics = _open_metrics(directory, state, own, job)
    describe = partial(_describe, job, directory, metrics)
    checkpointer = Checkpointer(
        directory.checkpoints, agreement, config.checkpoint, state.step if own else None, describe, job.say, job.launch.local_world_size
    )
    staged = checkpointer.prepare(engine.state(), plan.saves_after(state.step))
    print_facts(job.console, "isotrain", opening_facts(job, directory.path, engine.data_size, state.step, staged))
    if metrics is not None:
        _introduce(job, engine, directory, _passport(job, engine, same, surroundings), state)
    callbacks = _watchers(job, directory, metrics, state, report) if metrics is not None else []

    stream = build_stream(job, engine, agreement, state)

    def run_state(step: int, tokens_seen: int) -> RunState:
        ranks = Ranks.gathered(trainer.figures(), agreement.gather)
        if metrics is not None:
            metrics.append({"kind": "ranks", "step": step, **asdict(ranks)})
            metrics.flush()
            directory.write_passport(_passport(job, engine, same, surroundings))
        return RunState(step, same, tokens_seen, metrics.bytes if metrics else 0, stream_states(job, stream, engine, agreement))

    def account() -> None:
        directory.note("spent", **trainer.account())

    saving = Saving(checkpointer, engine.state, run_state, account, callbacks)
    throughput = _throughput(job, engine, flops, surroundings["device"])
    profiler = Profiler.of(config.track, directory.path, launch.rank, job.device, job.say, state.step)
    evaluator = build_evaluator(job, engine, partial(_sample, job, engine) if config.sample.every_evaluation else None)
    trainer = Trainer(engine, stream or build_loader(job, engine), plan, stop, callbacks, saving, throughput, evaluator, profiler.watching)
    if reason := next(filter(None, agreement.gather(stop.reason)), None):
        engine.close()
        return _stopped_before(job, directory, reason, state.step)
    with ExitStack() as last_words:  # all of them, even if one fails
        for close in (*(callback.on_end for callback in callbacks), profiler.close, account, checkpointer.close):
            last_words.callback(close)
        outcome = trainer.fit(state.step, state.tokens_seen)
    return _close(job, directory, engine, plan, outcome, Ranks.gathered(trainer.figures(), agreement.gather), state.tokens_seen, metrics)


def _introduce(job: Job, engine: Engine, directory: RunDirectory, passport: dict[str, Any], state: RunState) -> None:
    """Writes what a session is, before its first step."""
    config, ranks = job.config, job.launch.world_size
    directory.write_config(job.written_config)
    directory.write_passport(passport)
    for name, content in engine.files().items():
        directory.write_derived(name, content)
    directory.note(
        "began",
        step=state.step,
        strategy=strategy_name(job),
        axes=axes(config.strategy.degrees(ranks)),
        world_size=ranks,
        device=passport["device"],
        precision=config.precision.compute,
        unit=unit(job.corpus.needs),
    )


def _throughput(job: Job, engine: Engine, flops: Flops, device: str) -> Throughput:
    return Throughput(
        flops, job.config.train.global_batch, engine.data_size, job.launch.world_size, peak_of(device, job.config.precision.compute)
    )


def _watchers(job: Job, directory: RunDirectory, metrics: MetricsFile, state: RunState, report: RunReport) -> list[Callback]:
    """Who is told of steps, evaluations and checkpoints, on rank 0."""
    config, said = job.config, job.console
    steps, per = config.train.steps, unit(job.corpus.needs)
    bar = said.is_terminal and not config.run.quiet
    shown = ProgressBar(said, steps, state.step, per) if bar else PlainLines(said, steps, per)
    return [JsonLines(metrics), shown, *trackers(config.track, directory.path, state.step, job.written_config, job.say), report]


def _plan(config: Config) -> Plan:
    train, optimizer = config.train, config.optimizer
    return Plan(
        steps=train.steps,
        stop_after=min(train.stop_after or train.steps, train.steps),
        log_every=train.log_every,
        save_every=config.checkpoint.every,
        evaluate_every=train.evaluate_every,
        nonfinite=train.nonfinite,
        lr=optimizer.lr,
        lr_scale=lambda step: lr_scale(optimizer, step, train.steps),
        max_norm=optimizer.max_grad_norm,
    )


def _open_metrics(directory: RunDirectory, state: RunState, own: bool, job: Job) -> MetricsFile | None:
    """Rank 0's metrics file, cut back to the checkpoint; a run that starts from another run's checkpoint begins a new one."""
    if job.launch.rank > 0:
        return None
    metrics = MetricsFile(directory.metrics)
    if gap := metrics.cut_back(state.metrics_bytes if own else 0):
        job.say(gap)
    return metrics


def _describe(job: Job, directory: RunDirectory, metrics: MetricsFile | None, folder: Path) -> None:
    """What a checkpoint holds beside tensors and run state: enough to export it anywhere, and to know what made it."""
    if metrics is not None:
        metrics.settle()  # what the run state counts of it must not be lost once the checkpoint exists
    (folder / directory.passport.name).write_bytes(directory.passport.read_bytes())
    (folder / "config.yaml").write_text(job.written_config, encoding="utf-8")
    job.skeleton.model.config.save_pretrained(folder / "model")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    for path in job.corpus.tokenizer_folder.iterdir():
        (tokenizer / path.name).write_bytes(path.read_bytes())


def _passport(job: Job, engine: Engine, same: dict[str, Any], surroundings: dict[str, Any]) -> dict[str, Any]:
    degrees = job.config.strategy.degrees(job.launch.world_size)
    return {
        **surroundings,
        "strategy": {"name": job.config.strategy.name, **asdict(degrees)},
        "dtypes": engine.dtypes(),
        "parameters": job.skeleton.num_parameters,
        "identity": same,
        "plugins": versions(job.config.plugins),
    }


def _nothing_left(job: Job, directory: RunDirectory, state: RunState, plan: Plan) -> tuple[int, str]:
    more = "raise train.steps" if state.step >= plan.steps else "raise train.stop_after"
    sentence = f"{directory.path} is finished: step {state.step} of {plan.steps} is done. To train on, {more}; to begin anew, choose another run.dir."
    job.say(sentence)
    return DONE, sentence


def _stopped_before(job: Job, directory: RunDirectory, reason: str, done: int) -> tuple[int, str]:
    sentence = f"Stopped by {reason} before step {done + 1}; nothing is lost. {directory.again} to go on."
    job.say(sentence)
    return STOPPED, sentence


def _close(
    job: Job,
    directory: RunDirectory,
    engine: Engine,
    plan: Plan,
    outcome: Outcome,
    ranks: Ranks,
    tokens_before: int,
    metrics: MetricsFile | None,
) -> tuple[int, str]:
    """The last words of a session; every rank takes part in generating, since weights may be sharded."""
    if outcome.stopped_by and outcome.step < plan.stop_after:
        sentence = (
            f"Stopped by {outcome.stopped_by} after step {outcome.step} of {plan.steps}, with a checkpoint. {directory.again} to go on."
        )
        job.say(sentence)
        engine.close()
        return STOPPED, sentence
    finished = outcome.step >= plan.steps
    facts = closing_facts(job, directory.path, outcome, plan, ranks, tokens_before)
    if not finished:
        facts["go on"] = f"{directory.again} without train.stop_after"
    print_facts(job.console, "done" if finished else f"stopped at train.stop_after={plan.stop_after}", facts)
    if finished and not outcome.stopped_by:  # who asked to stop is in a hurry
        _show_sample(job, engine, outcome, metrics)
    engine.close()
    return DONE, f"Step {outcome.step} of {plan.steps} is done."


def _show_sample(job: Job, engine: Engine, outcome: Outcome, metrics: MetricsFile | None) -> None:
    """What the model writes, if it writes: going on from the prompt, or for held-out sources beside what should have been written."""
    evaluation = outcome.evaluation
    if job.skeleton.task == "causal_lm":
        kept = evaluation.sample if evaluation else None
        sample = kept or _last_sample(job, engine)
        print_sample(job.console, sample[1])
        if metrics is not None and kept is None:
            with suppress(OSError):  # training is over and saved
                metrics.append(sample_line(outcome.step, *sample))
                metrics.sync()
    elif evaluation is not None and evaluation.examples:
        print_examples(job.console, evaluation.examples)


def _last_sample(job: Job, engine: Engine) -> tuple[str, str]:
    """The same when all is saved: no run fails for want of a sample."""
    try:
        return _sample(job, engine)
    except Exception as error:
        LOGGER.exception("no sample")
        return job.config.sample.prompt, f"(no sample: {error})"


def _sample(job: Job, engine: Engine) -> tuple[str, str]:
    """The prompt, and the text that the model makes of it, or why it cannot make one. Collective."""
    from transformers import AutoTokenizer

    sample, seed = job.config.sample, named_seed(job.config.train.seed, "sample")
    tokenizer = AutoTokenizer.from_pretrained(job.corpus.tokenizer_folder)
    with engine.inference() as (model, arguments):
        try:
            return sample.prompt, generate_text(model, tokenizer, **sample.arguments, seed=seed, device=job.device, **arguments)[0]
        except Refused as error:  # by every rank; what fails on one alone ends the run, since the others wait for it
            return sample.prompt, f"(no sample: {error})"
