"""AdamW over parameter groups by weight decay, and its moments, made at once so that there is always a whole state to load into."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from trainer.distributed.sharding import local_part
from trainer.optimizer.config import AdamW

MOMENTS = ("exp_avg", "exp_avg_sq")


_AT_ONCE = 2**24
"""So many numbers' moments are fp32 at a time while they are updated, and those of one parameter at least."""


class AdamWBf16Moments(torch.optim.AdamW):
    """AdamW whose moments rest in bf16.

    The fused form takes parameters and moments of one type. So it is given some parameters at a time, with their moments in fp32, which are
    rounded to the nearest afterwards; where it leaves them untouched, so does that.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        groups = self.param_groups
        try:
            for group in groups:
                for some in _some_at_a_time(group["params"]):
                    self.param_groups = [{**group, "params": some}]
                    self._step_in_fp32([self.state[parameter] for parameter in some])
        finally:
            self.param_groups = groups

    def _step_in_fp32(self, states: list[dict[str, Tensor]]) -> None:
        resting = [{key: state[key] for key in MOMENTS} for state in states]
        for state, moments in zip(states, resting, strict=True):
            state.update({key: value.float() for key, value in moments.items()})
        super().step()
        for state, moments in zip(states, resting, strict=True):
            for key, value in moments.items():
                value.copy_(state[key])
            state.update(moments)


def _some_at_a_time(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Runs of ``parameters`` of ``_AT_ONCE`` numbers or fewer on this rank; one that has more is alone."""
    some: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        own = local_part(parameter).numel()
        if some and size + own > _AT_ONCE:
            yield some
            some, size = [], 0
        some.append(parameter)
        size += own
    yield some


def build_adamw(config: AdamW, named: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.AdamW:
    """Builds the optimizer over what requires gradients.

    Matrices and embeddings decay; vectors (biases, norms) do not. Parameters on different meshes are in different groups, because the fused
    form takes one mesh at a time. The fused form is used on every device: it alone can leave everything
    untouched when told that the gradient is not finite (``found_inf``), without the host knowing.

    Args:
        config: rates and decay.
        named: (checkpoint name, parameter), tied parameters once.
    """
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    groups: dict[tuple[bool, DeviceMesh | None], list[nn.Parameter]] = defaultdict(list)
    for _, parameter in sorted(trained, key=lambda item: item[1].ndim < 2):  # what decays comes first
        groups[parameter.ndim >= 2, getattr(parameter, "device_mesh", None)].append(parameter)
    decays = [{"params": group, "weight_decay": config.weight_decay if matrices else 0.0} for (matrices, _), group in groups.items()]
    kind = AdamWBf16Moments if config.moments == "bf16" else torch.optim.AdamW
    return kind(decays, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def make_moments(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> None:
    """Gives each of ``parameters``, which ``optimizer`` updates, moments of zero; an optimizer without moments is left alone."""
    if not isinstance(optimizer, torch.optim.AdamW):
        return
    dtype = torch.bfloat16 if isinstance(optimizer, AdamWBf16Moments) else torch.float32
    for parameter in parameters:
        moments = {
            key: torch.zeros_like(parameter, dtype=dtype, requires_grad=False, memory_format=torch.preserve_format) for key in MOMENTS
        }
        optimizer.state[parameter] = {"step": torch.zeros((), dtype=torch.float32, device=parameter.device), **moments}
