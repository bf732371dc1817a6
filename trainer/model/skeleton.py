"""A transformers model without memory: built on the meta device, so that each rank can shard it before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from trainer.errors import Refused
from trainer.model.config import Model, Pretrained
from trainer.model.families import Family, family_of
from trainer.types import Vocabulary


@dataclass(frozen=True)
class Skeleton:
    """A model on the meta device and what is known of it.

    Attributes:
        model: transformers model, every tensor on meta.
        family: its places.
        source: folder of pretrained weights, or None for a random initialisation.
    """

    model: PreTrainedModel
    family: Family
    source: Path | None

    @property
    def num_parameters(self) -> int:
        """Parameters, tied ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def build_skeleton(model: Model, vocabulary: Vocabulary, source: Path | None = None) -> Skeleton:
    """Builds ``model`` on the meta device.

    Args:
        model: the preset.
        vocabulary: the tokenizer's; its size and special ids are the model's unless it is pretrained.
        source: local folder of a pretrained model.

    Raises:
        Refused: the family is not supported or the folder's config cannot be read.
    """
    if isinstance(model, Pretrained):
        assert source is not None
        config = read_config(source)
    else:
        config = model.build_config(vocabulary)  # type: ignore[attr-defined]
    family = family_of(config.model_type)
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config, attn_implementation=model.attention, dtype=torch.float32)
    return Skeleton(built, family, source)


def read_config(folder: Path) -> PreTrainedConfig:
    """The transformers config of a local folder; no code from the folder is run."""
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise Refused(f"model.path={folder}: its config.json cannot be used: {error}") from error


def pretrained_folder(model: Any) -> Path | None:
    """The local folder of a pretrained model, fetched from the hub when ``model.path`` is no folder; None for other models.

    Raises:
        Refused: there is no such folder and the hub does not give it.
    """
    if not isinstance(model, Pretrained):
        return None
    folder = Path(model.path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                model.path, revision=model.revision, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
            )
        )
    except Exception as error:  # the hub client raises many types: offline, no such repository, no permission
        raise Refused(
            f"model.path={model.path} is neither a local folder nor a hub model that can be fetched ({type(error).__name__}). "
            "Give a folder with config.json and *.safetensors, or fetch it first where there is a network: hf download " + model.path
        ) from error
