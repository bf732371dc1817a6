"""The model gate: what can be refused once the skeleton and the corpus are known, before any process group exists."""

from __future__ import annotations

from trainer.errors import Refused
from trainer.model.skeleton import Skeleton
from trainer.model.weights import FromSafetensors
from trainer.types import Vocabulary


def model_problems(skeleton: Skeleton, vocabulary: Vocabulary, sequence_length: int, same_tokenizer: bool) -> list[str]:
    """Everything about the model that cannot work, one sentence each.

    Args:
        skeleton: the model on meta.
        vocabulary: of the corpus' tokenizer.
        sequence_length: ``data.sequence_length``.
        same_tokenizer: whether the corpus was made with the pretrained model's own tokenizer.
    """
    config, family = skeleton.model.config, skeleton.family
    problems = []
    longest = getattr(config, family.max_positions)
    if sequence_length > longest:
        problems.append(
            f"data.sequence_length={sequence_length} is longer than the {longest} positions of the model: lower it to {longest}."
        )
    if vocabulary.size > config.vocab_size:
        problems.append(
            f"The tokenizer has {vocabulary.size} ids, but the model's embedding has {config.vocab_size} rows: "
            "leave data.tokenizer.path unset to use the model's own tokenizer."
        )
    elif not same_tokenizer:
        problems.append(
            f"data.tokenizer.path is not the tokenizer that model.path={skeleton.source} was trained with: its ids mean other text there. "
            "Leave data.tokenizer.path unset to use the model's own."
        )
    return problems + _weight_problems(skeleton)


def _weight_problems(skeleton: Skeleton) -> list[str]:
    """What the pretrained folder lacks; only headers are read."""
    if skeleton.source is None:
        return []
    try:
        FromSafetensors(skeleton, seed=0)
    except Refused as refused:
        return refused.problems
    return []
