"""Text from a model: greedy, sampled or by beam search, through transformers' ``generate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer.errors import Refused
from trainer.model.lookup import family_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DECODERS_TEMPERATURE = 0.9
"""Of a model that goes on from a prompt, when none is asked for; a model that answers a source is greedy then."""


def generate_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    max_new_tokens: int,
    temperature: float | None,
    top_k: int | None,
    top_p: float,
    seed: int,
    num_beams: int = 1,
    num_samples: int = 1,
    device: torch.device | None = None,
    **generate_arguments: Any,
) -> list[str]:
    """A decoder goes on from ``prompt`` until the end of the document or ``max_new_tokens``; a seq2seq model writes a target for it.

    Args:
        model: anything with transformers' ``generate``; sharded ones need ``synced_gpus`` among the further arguments.
        tokenizer: the model's.
        prompt: for a decoder empty for the beginning of a document; for a seq2seq model the source.
        max_new_tokens: most tokens per sample; fewer where the model has no more positions.
        temperature: 0 is greedy; None: 0.9 for a decoder without beams, else 0.
        top_k, top_p: restrict sampling to the likeliest tokens; None and 1.0 do not.
        num_beams: 1 is no search.
        seed: of sampling; the caller's random state is left alone.
        num_samples: how many.
        device: where the ids go; None: where the model's parameters are (sharded ones may rest elsewhere than they compute).

    Returns:
        The prompt with its continuation, or the target, per sample, without special tokens.

    Raises:
        Refused: the prompt leaves no position to generate at, or is empty and the tokenizer has no token to begin with.
    """
    import torch
    from transformers import GenerationConfig

    reads_first = model.config.is_encoder_decoder
    ids = _source_ids(tokenizer, prompt) if reads_first else _prompt_ids(tokenizer, prompt)
    room = _room(model, len(ids), reads_first, max_new_tokens)
    if temperature is None:
        temperature = 0.0 if reads_first or num_beams > 1 else DECODERS_TEMPERATURE
    config = GenerationConfig(
        max_new_tokens=room,
        num_beams=num_beams,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
        use_cache=True,
        **_special_ids(tokenizer),
        **(
            {"do_sample": True, "temperature": temperature, "top_k": top_k or 0, "top_p": top_p}
            if temperature > 0
            else {"do_sample": False}
        ),
    )
    device = device or next(model.parameters()).device
    input_ids = torch.tensor([ids] * num_samples, device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        output = model.generate(input_ids, attention_mask=torch.ones_like(input_ids), generation_config=config, **generate_arguments)
    return tokenizer.batch_decode(output, skip_special_tokens=True)


def _room(model: PreTrainedModel, prompt: int, reads_first: bool, wanted: int) -> int:
    """How many tokens can be written; a source and what is written for it have positions of their own."""
    longest = family_of(model.config.model_type).longest(model.config)
    if longest is None:
        return wanted
    if prompt > longest or (prompt == longest and not reads_first):
        raise Refused(f"prompt has {prompt} tokens, but the model has {longest} positions: shorten it.")
    return min(wanted, longest - (1 if reads_first else prompt))


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The prompt after the token that begins a document; without either, the token that ended the document before."""
    first, last = _beginning(tokenizer), _end(tokenizer)
    ids = ([] if first is None else [first]) + tokenizer.encode(prompt, add_special_tokens=False)
    if ids:
        return ids
    if last is None:
        raise Refused("prompt is empty, and the tokenizer has no token that begins or ends a document: give a prompt.")
    return [last]


def _source_ids(tokenizer: PreTrainedTokenizerBase, source: str) -> list[int]:
    """The source between the tokens that begin and end a text, as far as there are such, as in training."""
    if not source.strip():
        raise Refused("prompt is empty: a seq2seq model needs a source to write a target for, prompt='...'.")
    first, last = _beginning(tokenizer), _end(tokenizer)
    return [id for id in (first, *tokenizer.encode(source, add_special_tokens=False), last) if id is not None]


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    end = _end(tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    return {"pad_token_id": pad, "eos_token_id": end, "bos_token_id": _beginning(tokenizer)}


def _beginning(tokenizer: PreTrainedTokenizerBase) -> int | None:
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id


def _end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    return tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
