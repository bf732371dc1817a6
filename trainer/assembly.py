"""From a config to the parts of a run: what every command needs that works with a model and its data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from rich.console import Console
from torch.optim import SGD
from transformers import AutoTokenizer

from trainer.config import Config
from trainer.data.grouping import LengthGrouped
from trainer.data.loader import StepLoader, held_out_batches
from trainer.data.mixing import MixOrder
from trainer.data.order import SampleOrder
from trainer.data.prepare import Corpus, prepare
from trainer.data.samples import AnySet
from trainer.data.stream_config import Streamed
from trainer.data.stream_loader import StreamLoader, Widths
from trainer.data.streaming import StreamedCorpus, open_streamed
from trainer.data.tokenizer import same_vocabulary
from trainer.data.words import word_starts
from trainer.distributed.agreement import Agreement
from trainer.distributed.launch import Launch
from trainer.distributed.mesh import build_mesh
from trainer.distributed.process_group import choose_device
from trainer.errors import Refused
from trainer.evaluation import Evaluator, Writer
from trainer.model.attention import attend_with, without_plain
from trainer.model.documents import wants_documents, with_documents
from trainer.model.gate import model_problems
from trainer.model.kernels import choose
from trainer.model.skeleton import Skeleton, blocks_of, build_skeleton
from trainer.model.weights import FromSafetensors, FromSeed, Unfilled
from trainer.objective.additive import missing_packages, objective_problems
from trainer.optimizer.adamw import build_adamw
from trainer.parallel.activation import Recompute, recompute_problems
from trainer.parallel.compiling import compile_problems
from trainer.parallel.dropout import may_drop
from trainer.protocols import Engine, EngineJob, Order, Strategy
from trainer.session.job import Job
from trainer.types import Batch, Context, Needs, RunState


def open_job(config: Config, launch: Launch) -> Job:
    """Prepares the data and looks at the model: everything that a rank can do, and refuse, alone.

    Raises:
        Refused: with everything about the model, the objective and the data that does not fit together.
    """
    if missing := missing_packages(config.objective):
        raise Refused(missing)
    folders = config.model.fetch()
    first = next(iter(folders.values()), None)
    needs = config.objective.needs(config.data.sequence_length, config.data.target_length)
    corpus = _open_corpus(config, needs, str(first) if first else None)
    skeleton = build_skeleton(config.model, config.objective.task, corpus.vocabulary, folders, corpus.labels, needs.label)
    own = {folder for folder in folders.values() if (folder / "tokenizer.json").is_file()}  # else the user's word is all there is
    same = all(same_vocabulary(corpus.tokenizer_folder, folder) for folder in own)
    problems = model_problems(skeleton, corpus.vocabulary, needs, config.data.sequence_length, config.data.target_length, same)
    try:
        weights = (FromSafetensors if folders else FromSeed)(skeleton, config.train.seed)
    except Refused as refused:
        problems += refused.problems
    context = _context(config, corpus, skeleton)
    if not problems:
        num_outputs = getattr(skeleton.model.config, "num_labels", 1)
        problems = objective_problems(config.objective, corpus.samples("train"), context, num_outputs)
    problems += recompute_problems(blocks_of(skeleton.model, skeleton.family), _recompute(config))
    device, console = choose_device(config.run.device, launch), Console(quiet=launch.rank > 0)
    problems += _compile_problems(config, skeleton, launch, device)
    problems += _choose_attention(config, skeleton, device, corpus.packed)
    problems += _asked(config.strategy, "problems", skeleton, config.precision, launch, device) or []
    if (
        not problems
        and (asked := _asked_to_write(config))
        and (apart := _asked(config.strategy, "whole_model_problem", skeleton, launch.world_size))
    ):
        problems.append(f"{asked[0]}: {apart}, or set it to {asked[1]}.")
    if problems:
        raise Refused(problems)
    return Job(config, launch, corpus, skeleton, weights, context, device, console)


def require_schedule(config: Config, world_size: int) -> None:
    """Refuses steps of fewer micro-batches than a pipeline's schedule takes; evaluation, which has none, does not ask."""
    if problems := _asked(config.strategy, "batch_problems", world_size, config.train.global_batch, config.train.micro_batch):
        raise Refused(problems)


def _asked(strategy: Strategy, hook: str, *about: Any) -> Any:
    """What a strategy answers where it has what it only may have (trainer.protocols.Strategy); else None."""
    answer = getattr(strategy, hook, None)
    return answer(*about) if answer else None


def _open_corpus(config: Config, needs: Needs, pretrained: str | None) -> Corpus:
    data, quiet = config.data, config.run.quiet
    if isinstance(data, Streamed) and data.streaming:
        return open_streamed(data, needs, pretrained, quiet)
    return prepare(data, needs, pretrained, quiet)


def collator(job: Job) -> Callable[..., Batch]:
    """The objective's ``collate`` with all that it may know, and with what the attention of the model wants to be told."""
    collate = partial(job.config.objective.collate, context=job.context)
    return without_plain(with_documents(collate) if wants_documents(job.skeleton.model.config) else collate)


def _choose_attention(config: Config, skeleton: Skeleton, device: torch.device, packed: bool) -> list[str]:
    """Gives the model the kernel that it shall attend with; why not, if it cannot have the one that was asked for."""
    train, apart = config.train, packed or not skeleton.family.causal
    kernel, problem = choose(train.attention, skeleton, device, config.precision.compute, train.activation_checkpointing, apart)
    attend_with(kernel, skeleton.model.config)
    return [problem] if problem else []


def _context(config: Config, corpus: Corpus, skeleton: Skeleton) -> Context:
    start = getattr(skeleton.model.config, "decoder_start_token_id", None)
    return Context(corpus.vocabulary, config.train.seed, start, word_starts(corpus.tokenizer_folder, corpus.vocabulary))


def build_engine(job: Job, resumed: bool = False, learns: bool = True) -> Engine:
    """The strategy's engine.

    Args:
        job: names the strategy.
        resumed: a checkpoint will fill it; else it is filled with the model's first values.
        learns: it keeps moments; one that only scores needs less memory.
    """
    config = job.config
    degrees = config.strategy.degrees(job.launch.world_size)
    engine_job = EngineJob(
        skeleton=job.skeleton,
        weights=Unfilled(job.skeleton, config.train.seed) if resumed else job.weights,
        objective=config.objective,
        make_optimizer=lambda named: build_adamw(config.optimizer, named) if learns else SGD([parameter for _, parameter in named]),
        precision=config.precision,
        mesh=build_mesh(degrees, job.device),
        device=job.device,
        seed=config.train.seed,
        micro_batch=config.train.micro_batch,
        accumulation=-(-config.train.global_batch // (degrees.data * config.train.micro_batch)),
        max_norm=config.optimizer.max_grad_norm,
        recompute=_recompute(config),
        compiles=config.train.compile,
        chunk=config.train.cross_entropy_chunk if config.train.cross_entropy == "chunked" else None,
    )
    return config.strategy.build(engine_job)


def build_order(config: Config, samples: AnySet) -> Order:
    """In which order a run sees its samples: each source in its own, mixed as the data says, in batches of like length if wanted."""
    shares, parts = config.data.shares(), {name: len(part) for name, part in samples.parts.items()}
    if empty := [name for name, size in parts.items() if not size and max(shares[name]) > 0]:
        raise Refused(f"data.parts.{empty[0]} has no sample to train on: add text, set its weight to 0, or lower data.validation_fraction.")
    drawn = {name: SampleOrder(size, config.train.seed) for name, size in parts.items() if size}
    start, end = zip(*(shares[name] for name in drawn), strict=True)
    total = config.train.steps * config.train.global_batch
    order: Order = next(iter(drawn.values())) if len(drawn) == 1 else MixOrder(list(drawn.values()), start, end, total)
    if config.data.group_by_length:
        return LengthGrouped(order, samples.lengths, config.train.global_batch, config.train.seed)
    return order


def build_loader(job: Job, engine: Engine) -> StepLoader:
    """The training batches of this rank."""
    samples, train = job.corpus.samples("train"), job.config.train
    return StepLoader(
        samples,
        build_order(job.config, samples),
        collator(job),
        global_batch=train.global_batch,
        micro_batch=train.micro_batch,
        data_rank=engine.data_rank,
        data_size=engine.data_size,
        workers=job.config.data.workers,
        pin_memory=job.device.type == "cuda",
        ahead=job.device.type == "cuda",
    )


def build_stream(job: Job, engine: Engine, agreement: Agreement, state: RunState) -> StreamLoader | None:
    """The training batches of this rank where the set is read while training, going on from ``state``; None: it was prepared."""
    config, corpus = job.config, job.corpus
    if not isinstance(corpus, StreamedCorpus):
        return None
    assert isinstance(config.data, Streamed)

    def widest(widths: list[Widths]) -> list[Widths]:
        return [{field: max(own[field] for own in step) for field in step[0]} for step in zip(*agreement.gather(widths), strict=True)]

    return StreamLoader(
        corpus.blocks(config.data, config.train.seed, engine.data_rank, engine.data_size),
        collator(job),
        global_batch=config.train.global_batch,
        micro_batch=config.train.micro_batch,
        data_rank=engine.data_rank,
        data_size=engine.data_size,
        widest=None if corpus.packed or engine.data_size == 1 else widest,
        state=state.stream[engine.data_rank] if state.stream else None,
        pin_memory=job.device.type == "cuda",
        ahead=job.device.type == "cuda",
    )


def stream_states(job: Job, stream: StreamLoader | None, engine: Engine, agreement: Agreement) -> list[Any] | None:
    """Where each data rank is, for a checkpoint; None: nothing is read while training. Says how many records could not be used."""
    if stream is None:
        return None
    told = {rank: (state, bad) for rank, state, bad in agreement.gather([engine.data_rank, stream.state, stream.bad])}
    if bad := [bad for _, bad in told.values() if bad]:
        job.say(f"bad records skipped in this epoch so far: {sum(one['count'] for one in bad):,}, such as {bad[0]['first']}")
    return [told[rank][0] for rank in range(engine.data_size)]


def build_evaluator(job: Job, engine: Engine, sample: Callable[[], tuple[str, str]] | None = None) -> Evaluator | None:
    """What measures the model on the held-out samples, and lets it write where ``sample`` says how; None if there are none."""
    train, collate, parts = job.config.train, collator(job), job.corpus.samples("validation").parts

    def batches(samples: AnySet) -> Iterable[Batch]:
        return held_out_batches(samples, collate, train.evaluate_samples, train.micro_batch, engine.data_rank, engine.data_size)

    held_out = {name: partial(batches, samples) for name, samples in parts.items() if len(samples)}
    return Evaluator(engine, job.config.objective, held_out, _writer(job), sample) if held_out else None


def _compile_problems(config: Config, skeleton: Skeleton, launch: Launch, device: torch.device) -> Iterable[str]:
    if not config.train.compile:
        return []
    split = config.strategy.degrees(launch.world_size).tensor > 1
    meets_again = split and config.train.activation_checkpointing == "full"
    return compile_problems(device, split and may_drop(skeleton.model), meets_again)


def _recompute(config: Config) -> Recompute | None:
    train = config.train
    return Recompute(train.activation_checkpointing, train.activation_checkpointing_every) if train.activation_checkpointing else None


def _writes(config: Any) -> bool:
    """Whether evaluation lets the model write."""
    return getattr(config.objective, "writes", False) and config.train.evaluate_generate > 0


def _asked_to_write(config: Config) -> tuple[str, str] | None:
    """The key by which a model has to write while it trains, and its value without that; None: it has not."""
    if _writes(config):
        return f"train.evaluate_generate={config.train.evaluate_generate}", "0"
    return ("sample.every_evaluation=true", "false") if config.sample.every_evaluation else None


def _writer(job: Job) -> Writer | None:
    config: Any = job.config
    if not _writes(config):
        return None
    target = config.data.target_length or config.data.sequence_length
    tokenizer = AutoTokenizer.from_pretrained(job.corpus.tokenizer_folder)
    return Writer(tokenizer, config.train.evaluate_generate, target, config.sample.num_beams)
