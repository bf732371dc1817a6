"""Text from a model: greedy or sampled, through transformers' ``generate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer.errors import Refused
from trainer.model.families import family_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def generate_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float,
    seed: int,
    num_samples: int = 1,
    device: torch.device | None = None,
    **generate_arguments: Any,
) -> list[str]:
    """Goes on from ``prompt`` until the end of the document or ``max_new_tokens``.

    Args:
        model: anything with transformers' ``generate``; sharded ones need ``synced_gpus`` among the further arguments.
        tokenizer: the model's.
        prompt: empty for the beginning of a document.
        max_new_tokens: most tokens per sample; fewer where the model has no more positions.
        temperature: 0 is greedy.
        top_k, top_p: restrict sampling to the likeliest tokens; None and 1.0 do not.
        seed: of sampling; the caller's random state is left alone.
        num_samples: how many.
        device: where the ids go; None: where the model's parameters are (sharded ones may rest elsewhere than they compute).

    Returns:
        The prompt with its continuation, per sample, without special tokens.

    Raises:
        Refused: the prompt leaves no position to generate at, or is empty and the tokenizer has no token to begin with.
    """
    import torch
    from transformers import GenerationConfig

    ids = _prompt_ids(tokenizer, prompt)
    room = getattr(model.config, family_of(model.config.model_type).max_positions) - len(ids)
    if room < 1:
        raise Refused(f"prompt has {len(ids)} tokens, but the model has {room + len(ids)} positions: shorten it.")
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": top_k or 0, "top_p": top_p} if temperature > 0 else {"do_sample": False}
    )
    config = GenerationConfig(
        max_new_tokens=min(max_new_tokens, room),
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        use_cache=True,
        **sampling,
    )
    device = device or next(model.parameters()).device
    input_ids = torch.tensor([ids] * num_samples, device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        output = model.generate(input_ids, attention_mask=torch.ones_like(input_ids), generation_config=config, **generate_arguments)
    return tokenizer.batch_decode(output, skip_special_tokens=True)


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The prompt after the token that begins a document; without either, the token that ended the document before."""
    beginning = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = beginning + tokenizer.encode(prompt, add_special_tokens=False)
    if ids:
        return ids
    if tokenizer.eos_token_id is None:
        raise Refused("prompt is empty, and the tokenizer has no token that begins or ends a document: give a prompt.")
    return [tokenizer.eos_token_id]
