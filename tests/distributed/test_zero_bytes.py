"""What a rank keeps under each strategy, in bytes per parameter: counted over all tensors that are alive, against the formulas of ZeRO.

The formulas are those of Rajbhandari et al. (2020), section 3, restated for what is really kept: gradients are summed in fp32, and DeepSpeed
has masters beside its fp32 parameters too. ``WRITE_ZERO_TABLE=1 pytest tests/distributed/test_zero_bytes.py`` puts what it measures into
docs/zero.md.
"""

import gc
import os
import time
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from trainer.testing import last_wins, run_ranks

PAGE = Path(__file__).parents[2] / "docs" / "zero.md"
BEGIN, END = "<!-- memory: written by tests/distributed/test_zero_bytes.py -->", "<!-- end of memory -->"
NUMBERS = (1, 2, 4)
TOLERANCE = 0.05
SHAPE = ["model.hidden_size=320", "model.intermediate_size=864", "model.num_layers=4", "model.num_heads=4"]
"""Every matrix has more than the 100,000 elements below which stage 3 keeps a parameter whole."""

KINDS = ("parameters", "masters", "moments", "gradients, accumulating", "gradients, before the step")
FORMULAS = {
    ("single", "fp32"): ("4", "0", "8", "4", "4"),
    ("single", "bf16"): ("0", "4", "8", "4", "4"),
    ("ddp", "fp32"): ("4", "0", "8", "4", "4"),
    ("ddp", "bf16"): ("0", "4", "8", "4", "4"),
    ("fsdp", "fp32"): ("4/N", "0", "8/N", "4/N", "4/N"),
    ("fsdp", "bf16"): ("0", "4/N", "8/N", "4/N", "4/N"),
    ("hsdp", "fp32"): ("8/N", "0", "16/N", "8/N", "8/N"),
    ("hsdp", "bf16"): ("0", "8/N", "16/N", "8/N", "8/N"),
    ("zero1", "fp32"): ("4", "4/N", "8/N", "4", "4/N"),
    ("zero1", "bf16"): ("2", "4/N", "8/N", "6", "6"),
    ("zero2", "fp32"): ("4", "4/N", "8/N", "4/N", "4/N"),
    ("zero2", "bf16"): ("2", "4/N", "8/N", "4/N", "4/N"),
    ("zero3", "fp32"): ("4/N", "4/N", "8/N", "4/N", "4/N"),
    ("zero3", "bf16"): ("2/N", "4/N", "8/N", "4/N", "4/N"),
}
"""Bytes per parameter on one of N ranks, of each of ``KINDS``. DDP's gradients are in its buckets; ``hsdp`` has two copies of the model."""

ONLY_ON = {"single": (1,), "hsdp": (4,)}
"""The numbers of ranks of those that do not run, or do not share, on all of ``NUMBERS``."""


def numbers_of(strategy):
    return ONLY_ON.get(strategy, NUMBERS)


def value(formula, ranks):
    number, _, divisor = formula.partition("/")
    return int(number) / (ranks if divisor else 1)


def expected(strategy, precision, ranks):
    """Bytes per parameter by kind."""
    return dict(zip(KINDS, (value(formula, ranks) for formula in FORMULAS[strategy, precision]), strict=True))


def total(kinds, last):
    """Of what there is while gradients accumulate, or before the step."""
    return sum(kinds[kind] for kind in KINDS[:3]) + kinds[KINDS[4 if last else 3]]


def alive():
    """Address -> bytes of the memory behind every tensor that Python knows of."""
    import torch

    gc.collect()
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # asking some objects for their class does
        tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor) and thing.device.type == "cpu"]
        tensors += [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    for tensor in tensors:
        found |= memory([tensor])
    return found


def memory(tensors):
    from trainer.distributed.sharding import local_part

    storages = [local_part(tensor.detach()).untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def known(engine, compute):
    """The memory of each kind that can be named, and of the buckets in which gradients are sent; gradients are what else there is."""
    zero = getattr(engine, "_zero", None)
    model = engine._loop._parts.model
    live = list(model.parameters())
    parts = {"parameters": memory(live), "masters": {}, "buckets": {}}
    if zero is None:
        optimizer = engine._parts.optimizer
        if compute != "fp32":
            parts |= {"parameters": {}, "masters": parts["parameters"]}
    else:
        optimizer = zero.optimizer
        parts["parameters"] |= memory([parameter.ds_tensor for parameter in live if hasattr(parameter, "ds_tensor")])
        parts["masters"] = memory(engine._partitions.flats)
        buffers = [bucket.buffer for bucket in getattr(zero, "ipg_buckets", {}).values()]
        parts["buckets"] = memory([tensor for held in buffers for tensor in (held if isinstance(held, list) else [held])])
    parts["moments"] = memory([tensor for state in optimizer.state.values() for tensor in state.values()])
    return parts


def kept(arguments):
    """On a rank: bytes per parameter of each kind in the second step, of two micro-batches, and the buckets' bytes; the model's size."""
    import torch

    from tests.contracts.engines import build_engine, micro_batches
    from trainer.types import StepPlan

    before = alive()
    job, engine = build_engine(arguments)
    named = engine._loop._parts.model.parameters()
    sizes = [getattr(parameter, "ds_numel", parameter.numel()) for parameter in named]
    seen, parts = [], engine._loop._parts

    def backward(*roots):
        parts.backward(*roots)
        time.sleep(0.1)  # gloo's thread lets go of a tensor a moment after it has sent it
        now = {address: size for address, size in alive().items() if address not in before}
        kinds = known(engine, job.config.precision.compute)
        seen.append({kind: sum(now.pop(address, 0) for address in held) for kind, held in kinds.items()})
        seen[-1]["rest"] = sum(now.values())

    for step in (1, 2):
        if step == 2:
            engine._loop._parts = replace(parts, backward=backward)
        engine.forward_backward(step, micro_batches(job, engine, step), {"targets": torch.tensor(100.0)})
        engine.optimizer_step(StepPlan(step, 1.0, 0.5))
    accumulating, last = seen
    kinds = {kind: last[kind] / sum(sizes) for kind in KINDS[:3]}
    kinds |= {KINDS[3]: accumulating["rest"] / sum(sizes), KINDS[4]: last["rest"] / sum(sizes)}
    return kinds, max(moment["buckets"] for moment in seen), sizes


def command(tiny, strategy, precision, ranks, *more):
    batch = [f"train.global_batch={4 * ranks}", "train.micro_batch=2"]
    return last_wins([*tiny, *SHAPE, *batch, f"strategy={strategy}", f"precision={precision}", *more])


@pytest.fixture(scope="module")
def measured(tiny):
    """Bytes per parameter by kind on the rank that has most, and the buckets' bytes; each cell is measured once."""

    @cache
    def measure(strategy, precision, ranks):
        answers = run_ranks(kept, ranks, command(tiny, strategy, precision, ranks))
        kinds, buckets, _ = max(answers, key=lambda answer: total(answer[0], last=False))
        return kinds, buckets

    yield measure
    if "WRITE_ZERO_TABLE" in os.environ:
        before, rest = PAGE.read_text().split(BEGIN)
        fresh = table(lambda *cell: total(measure(*cell)[0], last=False))
        PAGE.write_text(f"{before}{BEGIN}\n\n{fresh}\n\n{END}{rest.split(END)[1]}")


QUICK = {("ddp", "fp32", 2), ("zero2", "fp32", 2), ("zero3", "fp32", 2)}
CELLS = [(*cell, ranks) for cell in FORMULAS for ranks in numbers_of(cell[0])]


@pytest.mark.parametrize(
    ("strategy", "precision", "ranks"), [pytest.param(*c, marks=() if c in QUICK else pytest.mark.slow) for c in CELLS]
)
def test_a_rank_keeps_what_the_formula_and_the_page_say(measured, strategy, precision, ranks):
    kinds, _ = measured(strategy, precision, ranks)
    formula = expected(strategy, precision, ranks)
    for last in (False, True):
        assert total(kinds, last) == pytest.approx(total(formula, last), rel=TOLERANCE)
    # A parameter on the border of two ranks' parts has its whole gradient on both, so each kind is held to 5 % of the whole.
    for kind in KINDS:
        assert kinds[kind] == pytest.approx(formula[kind], abs=TOLERANCE * total(formula, last=False)), kind
    if "WRITE_ZERO_TABLE" not in os.environ:
        assert total(kinds, last=False) == pytest.approx(documented()[strategy, precision, ranks], rel=TOLERANCE)


@pytest.mark.parametrize(
    ("strategy", "ranks"), [("ddp", 2), *(pytest.param(*c, marks=pytest.mark.slow) for c in (("fsdp", 2), ("fsdp", 4)))]
)
def test_bf16_moments_take_half_of_what_the_formula_says(tiny, strategy, ranks):
    answers = run_ranks(kept, ranks, command(tiny, strategy, "bf16", ranks, "optimizer.moments=bf16"))
    kinds, _, _ = max(answers, key=lambda answer: total(answer[0], last=False))
    formula = expected(strategy, "bf16", ranks)
    formula["moments"] /= 2
    assert kinds["moments"] == pytest.approx(formula["moments"], rel=TOLERANCE)
    for last in (False, True):
        assert total(kinds, last) == pytest.approx(total(formula, last), rel=TOLERANCE)


@pytest.mark.parametrize(("strategy", "precision", "number"), [("zero1", "fp32", 2), ("zero2", "fp32", 0), ("zero3", "bf16", 1)])
@pytest.mark.slow
def test_buckets_hold_as_many_numbers_as_the_setting_says(measured, strategy, precision, number):
    """Stage 2 gives its two back after every backward, stage 1 after a step's last; stage 3 keeps its one."""
    assert measured(strategy, precision, 2)[1] == number * 50_000_000 * 4


@pytest.mark.slow
def test_stage_3_keeps_small_parameters_whole(tiny):
    """Below 100,000 elements (DeepSpeed's ``stage3_param_persistence_threshold``): here the attention's matrices, a third of the model."""
    answers = run_ranks(kept, 4, command(tiny, "zero3", "fp32", 4, "model.hidden_size=256", "model.intermediate_size=512"))
    for kinds, _, sizes in answers:
        small = sum(size for size in sizes if size < 100_000) / sum(sizes)
        assert small > 0.3
        assert kinds["parameters"] == pytest.approx(4 / 4 + 4 * small, rel=TOLERANCE)


def times_less(strategy, precision, ranks):
    """How many times less than DDP before the step, 16 bytes in both precisions, at the moment when there is most."""
    return total(expected("ddp", precision, ranks), last=True) / total(expected(strategy, precision, ranks), last=False)


def limit(strategy, precision):
    """What ``times_less`` tends to as ranks are added, and from which number on it is there but for 5 %."""
    constant = sum(int(formula) for formula in FORMULAS[strategy, precision][:4] if "/" not in formula)
    if not constant:
        factor = 16 / total(expected(strategy, precision, 1), last=False)
        return f"{'' if factor == 1 else f'{factor:.2g} '}N", "every N"
    reaches = next(ranks for ranks in range(1, 10_000) if times_less(strategy, precision, ranks) >= 0.95 * 16 / constant)
    return f"{16 / constant:g}", f"N >= {reaches}"


def table(measured):
    """The page's lines, with what ``measured(strategy, precision, ranks)`` gives."""
    header = ["strategy", "precision", *KINDS, *(f"measured, N = {ranks}" for ranks in NUMBERS), "times less than `ddp`", "but for 5 % at"]
    lines = [header, ["---"] * len(header)]
    for (strategy, precision), formulas in FORMULAS.items():
        found = [f"{measured(strategy, precision, ranks):.2f}" if ranks in numbers_of(strategy) else "" for ranks in NUMBERS]
        less = ("", "") if strategy in ("single", "ddp") else limit(strategy, precision)
        lines.append([f"`{strategy}`", precision, *formulas, *found, *less])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def documented():
    """The numbers measured that the page shows."""
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in page_table().splitlines()[2:]]
    return {(*row[:2], ranks): float(row[7 + number]) for row in rows for number, ranks in enumerate(NUMBERS) if row[7 + number]}


def page_table():
    return PAGE.read_text().split(BEGIN)[1].split(END)[0].strip()


def test_the_page_shows_these_formulas():
    shown = documented()
    assert page_table() == table(lambda *cell: shown[cell])
