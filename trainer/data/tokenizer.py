"""The tokenizer of a corpus as a Hugging Face folder: trained here, or brought along."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from trainer.errors import Refused
from trainer.types import Vocabulary

_SPECIAL = {"bos": "<|bos|>", "eos": "<|eos|>", "pad": "<|pad|>"}
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "config.json",
)
"""What may be needed of a named tokenizer. ``config.json`` names the special ids where ``tokenizer_config.json`` does not."""


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Trains a byte-level BPE with special tokens ``<|bos|> <|eos|> <|pad|>``; the same texts give the same files.

    Every string can be encoded and comes back unchanged. Encoding with special tokens puts ``<|bos|>`` first.

    Args:
        texts: the training documents.
        vocab_size: entries wanted, special tokens included; a small corpus may not yield as many.
        folder: receives ``tokenizer.json`` and ``tokenizer_config.json``.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in _SPECIAL.values()],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = _SPECIAL["bos"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_config(folder, {f"{name}_token": token for name, token in _SPECIAL.items()})


def find_tokenizer(name: str) -> Path:
    """The local folder of a named tokenizer, fetched from the hub (or its local cache) unless ``name`` is a folder.

    Raises:
        Refused: there is none, or it has no ``tokenizer.json``.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _download(name)
    if not (folder / "tokenizer.json").is_file():
        raise Refused(
            f"data.tokenizer.path: {name} has no tokenizer.json. Write one with transformers: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER), then set data.tokenizer.path=FOLDER."
        )
    return folder


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copies a tokenizer so that the copy loads by itself: its special tokens and its class are written out, code is not referred to."""
    folder.mkdir(parents=True)
    for name in _FILES:
        if name != "config.json" and (source / name).is_file():
            (folder / name).write_bytes((source / name).read_bytes())
    tokenizer = _read(source)
    special = {f"{name}_token": _special_token(name, tokenizer, source) for name in _SPECIAL}
    _write_config(folder, {name: token for name, token in special.items() if token is not None})


def load_tokenizer(folder: Path) -> tuple[Tokenizer, Vocabulary]:
    """Reads a tokenizer for encoding whole documents: never cut or padded, text that spells a special token stays text.

    Raises:
        Refused: it cannot be read, or a special id lies outside its vocabulary.
    """
    tokenizer = _read(folder)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    tokens = {name: _special_token(name, tokenizer, folder) for name in _SPECIAL}
    ids = {name: None if token is None else tokenizer.token_to_id(token) for name, token in tokens.items()}
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    return tokenizer, Vocabulary(size=size, **ids, sha256=hash_tokenizer(folder))


def hash_tokenizer(folder: Path) -> str:
    """SHA-256 of a folder's ``tokenizer.json`` as hex."""
    return hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()


def hash_files(folder: Path) -> str:
    """SHA-256 over all files that say what a named tokenizer does."""
    present = [(name, folder / name) for name in _FILES if (folder / name).is_file()]
    return hashlib.sha256(b"".join(name.encode() + hashlib.sha256(path.read_bytes()).digest() for name, path in present)).hexdigest()


def same_vocabulary(folder_a: Path | str, folder_b: Path | str) -> bool:
    """Whether two tokenizer folders give every token the same id.

    Raises:
        Refused: one of them holds no readable ``tokenizer.json``.
    """
    a, b = _read(Path(folder_a)), _read(Path(folder_b))
    return a.get_vocab(with_added_tokens=True) == b.get_vocab(with_added_tokens=True)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except HFValidationError:
        raise Refused(
            f"data.tokenizer.path: {name} is neither a folder here nor a hub id. Give a folder that holds tokenizer.json, or OWNER/NAME."
        ) from None
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise Refused(
            f"data.tokenizer.path: {name} is no folder here and could not be fetched from the hub ({reason}). "
            "Give a folder that holds tokenizer.json, check the hub id, or log in to the hub."
        ) from error


def _read(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise Refused(f"{folder} holds no tokenizer.json. Set data.tokenizer.path to a folder that does.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise Refused(f"{path} cannot be read as a tokenizer ({error}). Fetch it again or set data.tokenizer.path to another.") from error


def _special_token(name: str, tokenizer: Tokenizer, folder: Path) -> str | None:
    """The token that is ``bos``, ``eos`` or ``pad`` by the first file that knows it.

    Raises:
        Refused: it is not in the vocabulary.
    """
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        token = _read_json(folder / file).get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None:
            if tokenizer.token_to_id(token) is None:
                raise Refused(
                    f"{folder / file} names {name}_token={token!r}, which tokenizer.json does not contain. Correct one of the two files."
                )
            return token
    id = _read_json(folder / "config.json").get(f"{name}_token_id")
    id = id[0] if isinstance(id, list) else id
    if id is None:
        return None
    if (token := tokenizer.id_to_token(id)) is None:
        raise Refused(
            f"{folder / 'config.json'} names {name}_token_id={id}, which is outside the vocabulary of tokenizer.json. Correct one of the two files."
        )
    return token


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise Refused(f"{path} is not valid JSON ({error}). Fetch it again or set data.tokenizer.path to another tokenizer.") from error


def _write_config(folder: Path, special_tokens: dict[str, str]) -> None:
    path = folder / "tokenizer_config.json"
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **_read_json(path), **special_tokens}
    config.pop("auto_map", None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
