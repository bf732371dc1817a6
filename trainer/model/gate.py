"""The model gate: what can be refused once the skeleton and the corpus are known, before any process group exists."""

from __future__ import annotations

from typing import Any

from trainer.model.planned import planned_problems
from trainer.model.skeleton import Skeleton, blocks_of
from trainer.types import Needs, Vocabulary


def model_problems(
    skeleton: Skeleton, vocabulary: Vocabulary, needs: Needs, sequence_length: int, target_length: int | None, same_tokenizer: bool
) -> list[str]:
    """Everything about the model that cannot work, its weights apart, one sentence each.

    Args:
        skeleton: the model on meta.
        vocabulary: of the corpus' tokenizer.
        needs: the objective's.
        sequence_length, target_length: ``data.sequence_length`` and ``data.target_length``.
        same_tokenizer: whether the corpus was made with the pretrained model's own tokenizer.
    """
    config, longest = skeleton.model.config, skeleton.family.longest(skeleton.model.config)
    asked = {"data.sequence_length": sequence_length, "data.target_length": target_length if "target" in needs.fields else None}
    problems = [*planned_problems(skeleton), *_rotary_problems(config, sequence_length)]
    if not blocks_of(skeleton.model, skeleton.family):
        problems.append("The model's config.json says that it has no blocks: there is nothing to train.")
    problems += [
        f"{key}={length} is longer than the {longest} positions of the model: lower it to {longest}."
        for key, length in asked.items()
        if longest is not None and length is not None and length > longest
    ]
    if longest is not None and (needs.target_length or 0) > longest:
        problems.append(
            f"Rows of data.sequence_length={sequence_length} give targets of {needs.target_length} tokens, more than the {longest} positions of the model: "
            "lower data.sequence_length or objective.noise_density."
        )
    if skeleton.task == "seq2seq" and getattr(config, "decoder_start_token_id", None) is None:
        problems.append("The model's config.json has no decoder_start_token_id, with which a decoder begins to write: add it there.")
    if vocabulary.size > config.vocab_size:
        problems.append(
            f"The tokenizer has {vocabulary.size} ids, but the model's embedding has {config.vocab_size} rows: "
            "leave data.tokenizer.path unset to use the model's own tokenizer."
        )
    elif not same_tokenizer:
        folders = " and ".join(sorted({str(folder) for folder in skeleton.folders.values()}))
        problems.append(
            f"The corpus' tokenizer is not the one that {folders} was trained with: its ids mean other text there. "
            "Leave data.tokenizer.path unset to use the model's own; two models that are joined must have the same."
        )
    if "mask" in needs.special_tokens and vocabulary.mask is None:
        problems.append("The tokenizer has no mask token, which this objective hides tokens with: name another in data.tokenizer.path.")
    if needs.num_sentinels > (found := len(vocabulary.sentinels)):
        problems.append(
            f"The tokenizer has {found} sentinels <extra_id_0> ..., but rows of data.sequence_length={sequence_length} have up to "
            f"{needs.num_sentinels} spans: lower it, raise objective.mean_span, or name another tokenizer in data.tokenizer.path."
        )
    return problems


def _rotary_problems(config: Any, sequence_length: int) -> list[str]:
    """Rotary positions whose frequencies depend on the longest text of a call: a text would score otherwise beside another."""
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = parameters.values() if all(isinstance(value, dict) for value in parameters.values()) else [parameters]
    problems = []
    for kind in kinds:
        trained_on = kind.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        longest = trained_on or getattr(config, "max_position_embeddings", None) or sequence_length
        if kind.get("rope_type") in ("longrope", "dynamic") and sequence_length > longest:
            problems.append(
                f"data.sequence_length={sequence_length}: beyond {longest} positions the model's rope_type={kind['rope_type']} takes other frequencies "
                f"for a whole batch where one text is long, so that the loss would depend on the micro-batch: lower it to {longest}."
            )
    return problems
