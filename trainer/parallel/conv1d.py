"""GPT-2's linear layers, transformers' Conv1D, split over the tensor axis; swapped in place by class, because torch's styles know ``nn.Linear`` only.

Their weights are (in, out), the other way round.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from transformers.pytorch_utils import Conv1D


class ColumnConv1D(Conv1D):
    """Each rank has some columns of the weight, and puts out as many units."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., in), which every rank has whole, to this rank's units (..., out / t)."""
        if not isinstance(hidden, DTensor):
            hidden = DTensor.from_local(hidden, _mesh(self.weight), [Replicate()], run_check=False)
        return super().forward(hidden).to_local()


class RowConv1D(Conv1D):
    """Each rank has some rows of the weight, and takes in as many units.

    Attributes:
        sums: whether ranks add up here; else parts are put out, as a ``DTensor``. The bias is in them once.
    """

    sums: bool

    def forward(self, units: Tensor) -> Tensor:
        """This rank's units (..., in / t) to (..., out)."""
        output = super().forward(DTensor.from_local(units, _mesh(self.weight), [Shard(units.ndim - 1)], run_check=False))
        return output.redistribute(placements=[Replicate()]).to_local() if self.sums else output


def _mesh(weight: Tensor) -> DeviceMesh:
    assert isinstance(weight, DTensor)
    return weight.device_mesh
