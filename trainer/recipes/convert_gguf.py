"""Turns a Llama in GGUF into a plain Hugging Face folder. A script: it runs where the package ``gguf`` can be imported.

``python convert_gguf.py WEIGHTS.gguf FOLDER``
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(weights: Path, folder: Path) -> None:
    """Writes config, bfloat16 weights and tokenizer of ``weights`` into ``folder``."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32)
    # What was read is a plain model that still calls itself quantized: it can be neither saved nor trained. A new one takes its tensors.
    settings = read.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(folder)
    _write_tokenizer(weights, folder, model.config.max_position_embeddings)


def _write_tokenizer(weights: Path, folder: Path, max_length: int) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    # The file names its pre-tokenizer "smollm": each digit alone, then GPT-2's pattern. The reader knows only the second half, and
    # would cut the blanks before a number where the model never saw them cut.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
