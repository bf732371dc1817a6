"""``passport.json``: what ran, on what, and which number types were really used."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("isotrain", "torch", "transformers", "tokenizers", "safetensors", "hydra-core", "omegaconf", "numpy")


def environment(device: torch.device, world_size: int) -> dict[str, Any]:
    """Versions, commit, machine and device."""
    return {
        "packages": {name: version(name) for name in PACKAGES},
        "commit": git_commit(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "world_size": world_size,
    }


def version(package: str) -> str | None:
    """The installed version; None when the package runs from a checkout without being installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of the checkout that runs, with ``+changes`` if files differ from it; None outside of one."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
