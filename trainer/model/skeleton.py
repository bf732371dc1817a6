"""A transformers model without memory: built on the meta device, so that each rank can shard it before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from trainer.errors import Refused
from trainer.model.config import Model
from trainer.model.families import Family, Head
from trainer.model.lookup import family_of
from trainer.types import Vocabulary

CLASSES = {
    "causal_lm": AutoModelForCausalLM,
    "masked_lm": AutoModelForMaskedLM,
    "seq2seq": AutoModelForSeq2SeqLM,
    "classification": AutoModelForSequenceClassification,
}
"""What transformers calls a model for a task."""

PROBLEM_TYPES = {"class": "single_label_classification", "classes": "multi_label_classification", "number": "regression"}
"""What transformers calls the kinds of label (trainer.types.Needs)."""


@dataclass(frozen=True)
class Skeleton:
    """A model on the meta device and what is known of it.

    Attributes:
        model: transformers model, every tensor on meta.
        family: its places.
        task: what it is trained for; names its head.
        folders: where pretrained weights lie, by the prefix of the names that they give; empty for a random initialisation.
        num_parameters: of the whole model, tied ones once.
    """

    model: PreTrainedModel
    family: Family
    task: str
    folders: dict[str, Path]
    num_parameters: int

    @property
    def head(self) -> Head:
        """The head of its task."""
        return self.family.head(self.task)


def blocks_of(model: torch.nn.Module, family: Family) -> list[torch.nn.Module]:
    """All blocks of all stacks."""
    return [block for path in family.blocks for block in model.get_submodule(path).children()]


def build_skeleton(
    model: Model,
    task: str,
    vocabulary: Vocabulary,
    folders: dict[str, Path] | None = None,
    labels: tuple[str, ...] | None = None,
    label_kind: str | None = None,
) -> Skeleton:
    """Builds ``model`` on the meta device.

    Args:
        model: the preset.
        task: the objective's.
        vocabulary: the tokenizer's; its size and special ids are the model's unless it is pretrained.
        folders: what ``model.fetch()`` gave; empty for a random initialisation.
        labels: names of the classes, for classification.
        label_kind: ``class``, ``classes`` or ``number``, for classification.

    Raises:
        Refused: the family is not supported, cannot do the task, or a folder's config cannot be read.
    """
    folders = folders or {}
    config = model.config_for(vocabulary, folders)
    family = family_of(config.model_type)
    family.head(task)
    if label_kind is not None:
        names = labels or ("value",)
        _require_order(config, names)
        config.problem_type = PROBLEM_TYPES[label_kind]
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
        if family.causal or config.pad_token_id is None:
            config.pad_token_id = vocabulary.fill  # decoders find a row's end by it
    if model.attention == "sdpa" and not CLASSES[task]._model_mapping[type(config)]._supports_sdpa:
        raise Refused(f"model.attention=sdpa: transformers has none for a {family.name}: set model.attention=eager.")
    try:
        with torch.device("meta"):
            built = build_model(config, task, attn_implementation=model.attention)
    except (ValueError, KeyError, StrictDataclassError) as error:  # what a config.json says need not fit together
        raise Refused(f"model: transformers cannot build a {family.name} as its config.json says: {error}") from error
    if vocabulary.pad is None and not folders:  # then another token fills up rows, which is learned like any
        for module in built.modules():
            if isinstance(module, torch.nn.Embedding):
                module.padding_idx = None
    return Skeleton(built, family, task, folders, sum(parameter.numel() for parameter in built.parameters()))


def _require_order(config: PreTrainedConfig, names: tuple[str, ...]) -> None:
    """Refuses data whose classes are those that a folder tells apart, but in another order: its head would take one for another."""
    theirs = tuple(str(name) for _, name in sorted((config.id2label or {}).items()))
    if theirs != names and set(theirs) == set(names):
        raise Refused(
            f"The model's config.json counts its classes as {', '.join(theirs)}, but data.label in sorted order is {', '.join(names)}: "
            "rename the classes of one of them."
        )


def build_model(config: PreTrainedConfig, task: str, **options: str) -> PreTrainedModel:
    """The transformers model of a config for a task, fp32, without the modules that its loss never reaches."""
    model = CLASSES[task].from_config(config, dtype=torch.float32, **options)
    for path in family_of(config.model_type).unused:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, None)
    config.architectures = [type(model).__name__]
    return model


def task_of(config: PreTrainedConfig) -> str:
    """The task that a saved config was for, by the class that it names.

    Raises:
        Refused: it names none of ``CLASSES``, such as an encoder without a head.
    """
    named = (config.architectures or ["no class"])[0]
    for task in family_of(config.model_type).heads:
        if CLASSES[task]._model_mapping[type(config)].__name__ == named:
            return task
    raise Refused(f"The model's config.json names {named}, which is not a model for any of the tasks {', '.join(CLASSES)}.")
