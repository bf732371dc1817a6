"""Checkpoint names: each parameter once, under the name that the stock transformers model gives it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def named_owners(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields (checkpoint name, parameter), tied parameters once, under their first name."""
    yield from model.named_parameters(remove_duplicate=True)


def aliases(model: nn.Module) -> dict[str, str]:
    """Maps each tied parameter's further names to the name that owns it, such as lm_head.weight to model.embed_tokens.weight."""
    owner_of = {id(parameter): name for name, parameter in model.named_parameters(remove_duplicate=True)}
    return {
        name: owner_of[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if owner_of[id(parameter)] != name
    }


def put(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Makes ``parameter`` the one of this dotted name."""
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, parameter)
