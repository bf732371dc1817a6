"""Precision policies as data: which numbers are kept in which type. Engines translate them; docs/precision.md is the table."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.schema import setting


@dataclass
class Precision:
    """The type of each kind of number.

    Master parameters, accumulated gradients and the loss are always fp32; so are moments, unless ``optimizer.moments`` says otherwise.
    """

    compute: str = setting("fp32", "type of parameters and activations in forward and backward", choices=("fp32", "bf16"))
    reduce: str = setting("fp32", "type in which gradients are summed over micro-batches and ranks", choices=("fp32",))
