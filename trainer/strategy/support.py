"""What combines with what: the one table, with the sentence for what does not. README's matrix is generated from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Supported:
    """Every combination of these names is tested and allowed."""

    strategy: tuple[str, ...]
    precision: tuple[str, ...]
    objective: tuple[str, ...]
    family: tuple[str, ...]


_ANYHOW = {"strategy": ("single", "ddp", "fsdp", "hsdp", "pipeline", "zero1", "zero2", "zero3"), "precision": ("fp32", "bf16")}

_TENSOR = {"strategy": ("tensor", "3d"), "precision": ("fp32", "bf16")}
"""Tensor parallelism, by itself and inside of the others: of the families whose plan trainer/model/families.py or transformers has."""

SUPPORTED = (
    Supported(**_ANYHOW, objective=("causal_lm",), family=("llama", "gpt2")),
    Supported(**_ANYHOW, objective=("masked_lm",), family=("bert", "roberta")),
    Supported(**_ANYHOW, objective=("span_corruption",), family=("t5", "bart")),
    Supported(**_ANYHOW, objective=("seq2seq",), family=("t5", "bart", "encoder_decoder")),
    Supported(**_ANYHOW, objective=("classification",), family=("bert", "roberta", "llama", "gpt2")),
    Supported(**_TENSOR, objective=("causal_lm",), family=("llama", "gpt2")),
    Supported(**_TENSOR, objective=("masked_lm",), family=("bert", "roberta")),
    Supported(**_TENSOR, objective=("span_corruption",), family=("t5", "bart")),
    Supported(**_TENSOR, objective=("seq2seq",), family=("t5", "bart", "encoder_decoder")),
    Supported(**_TENSOR, objective=("classification",), family=("bert", "roberta", "llama", "gpt2")),
)

AXES = ("strategy", "precision", "objective", "family")


@dataclass(frozen=True)
class Belongs:
    """A strategy setting that only means something with (or only without) ``fully_shard``; ``why`` completes the sentence."""

    setting: str
    fully_shard: bool
    why: str


BELONGS = (
    Belongs("cpu_offload", True, "only sharded parameters can be kept in host memory"),
    Belongs("reshard_after_forward", True, "there is nothing to free where every rank holds all parameters"),
    Belongs("reduce_every_micro_batch", True, "unsharded gradients are always summed once, after the last micro-batch"),
    Belongs("bucket_mb", False, "only DDP sends gradients in buckets"),
)


def combination_problem(strategy: str, precision: str, objective: str | None, family: str | None) -> str | None:
    """The sentence why a combination is not allowed, or None where it is.

    Args:
        strategy: what the degrees amount to: single, ddp, fsdp, hsdp, tensor, pipeline or 3d; or zero1, zero2, zero3.
        precision: the compute type.
        objective: its name, or None for a plugin's, which answers for itself.
        family: the model family, or None where it is not known yet or a plugin's.
    """
    asked = dict(zip(AXES, (strategy, precision, objective, family), strict=True))

    def differing(row: Supported) -> list[str]:
        return [axis for axis, name in asked.items() if name is not None and name not in getattr(row, axis)]

    fewest = min(len(differing(row)) for row in SUPPORTED)
    if fewest == 0:
        return None
    typed = ", ".join(f"{_KEYS[axis]}={name}" for axis, name in asked.items() if name is not None)
    ways: dict[tuple[str, ...], dict[str, list[str]]] = {}  # by what would have to change, as little as possible: what it can be
    for row in SUPPORTED:
        wrong = differing(row)
        if len(wrong) == fewest:
            for axis in wrong:
                ways.setdefault(tuple(wrong), {}).setdefault(axis, []).extend(getattr(row, axis))
    fixes = "; or ".join(
        " and ".join(f"{_KEYS[axis]} can be {', '.join(dict.fromkeys(names))}" for axis, names in way.items()) for way in ways.values()
    )
    return f"{typed} do not combine: {fixes}."


_KEYS = {"strategy": "strategy", "precision": "precision.compute", "objective": "objective", "family": "model family"}


def setting_problems(strategy: Any, defaults: Any) -> list[str]:
    """A sentence for each setting that was changed from its default where it has no effect.

    Args:
        strategy: a NativeStrategy.
        defaults: another, untouched.
    """
    return [
        f"strategy.{row.setting}={_typed(getattr(strategy, row.setting))} has no effect here, because {row.why}: "
        + (f"did you mean strategy={'fsdp' if row.fully_shard else 'ddp'}?" if row.fully_shard != strategy.fully_shard else "leave it out.")
        for row in BELONGS
        if (row.fully_shard != strategy.fully_shard or (row.setting == "bucket_mb" and (strategy.tensor != 1 or strategy.pipeline != 1)))
        and getattr(strategy, row.setting) != getattr(defaults, row.setting)
    ]


def _typed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def markdown_matrix() -> str:
    """The table of README: one row per objective and strategies that are alike, one column per model family, the precisions in the cells."""
    families = _names("family")
    lines = [f"| objective | strategy | {' | '.join(families)} |", f"|---|---|{'---|' * len(families)}"]
    for objective in _names("objective"):
        alike: dict[tuple[str, ...], list[str]] = {}
        for strategy in _names("strategy"):
            cells = (", ".join(p for p in _names("precision") if combination_problem(strategy, p, objective, f) is None) for f in families)
            alike.setdefault(tuple(cell or "-" for cell in cells), []).append(f"`{strategy}`")
        lines += [f"| `{objective}` | {', '.join(names)} | {' | '.join(cells)} |" for cells, names in alike.items()]
    return "\n".join(lines) + "\n"


def _names(axis: str) -> list[str]:
    return list(dict.fromkeys(name for row in SUPPORTED for name in getattr(row, axis)))
