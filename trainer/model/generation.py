"""Text from a model: greedy or sampled, through transformers' ``generate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
        max_new_tokens: most tokens per sample.
        temperature: 0 is greedy.
        top_k, top_p: restrict sampling to the likeliest tokens; None and 1.0 do not.
        seed: of sampling; the caller's random state is left alone.
        num_samples: how many.
        device: where the ids go; None: where the model's parameters are (sharded ones may rest elsewhere than they compute).

    Returns:
        The prompt with its continuation, per sample, without special tokens.
    """
    import torch
    from transformers import GenerationConfig

    beginning = [token for token in (tokenizer.bos_token_id,) if token is not None]
    ids = beginning + tokenizer.encode(prompt, add_special_tokens=False)
    if not ids:
        ids = [tokenizer.eos_token_id]  # a document that follows another: what a tokenizer without a first token saw in training
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": top_k or 0, "top_p": top_p} if temperature > 0 else {"do_sample": False}
    )
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
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
