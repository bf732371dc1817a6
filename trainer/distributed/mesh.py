"""The device mesh: named axes in one fixed order, outermost first."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from trainer.distributed.degrees import Degrees


def build_mesh(degrees: Degrees, device: torch.device) -> DeviceMesh:
    """A mesh with one axis per degree, in the order of ``Degrees``' fields; sizes of 1 included, so that every axis has a name."""
    axes = asdict(degrees)
    return init_device_mesh(device.type, tuple(axes.values()), mesh_dim_names=tuple(axes))
