"""The tokenizer of a corpus as a Hugging Face folder: trained here, or brought along."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from trainer.errors import Refused
from trainer.types import Vocabulary

_TOKEN_FILES = ("tokenizer_config.json", "special_tokens_map.json")
_SPECIAL = {"bos": "<|bos|>", "eos": "<|eos|>", "pad": "<|pad|>"}
_MASK = "<|mask|>"
_NUM_SENTINELS = 100
_ROLES = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")
_CONVENTION = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "pad": "[PAD]"}
"""How BERT's tokenizers spell them; the oldest folders name them nowhere else."""
_SENTINEL = re.compile(r"<extra_id_([0-9]+)>")
_NUM_BYTES = 256
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


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path, special_tokens: Sequence[str] = ()) -> None:
    """Trains a byte-level BPE with special tokens ``<|bos|> <|eos|> <|pad|>``; the same texts give the same files.

    Every string can be encoded and comes back unchanged. Encoding with special tokens puts ``<|bos|>`` first.

    Args:
        texts: the training documents.
        vocab_size: entries wanted, special tokens included; a small corpus may not yield as many.
        folder: receives ``tokenizer.json`` and ``tokenizer_config.json``.
        special_tokens: what follows these three: ``mask`` for ``<|mask|>``, ``sentinels`` for ``<extra_id_0>`` to ``<extra_id_99>``.

    Raises:
        Refused: so many entries do not hold the special tokens and all bytes.
    """
    roles = _SPECIAL | ({"mask": _MASK} if "mask" in special_tokens else {})
    sentinels = [f"<extra_id_{number}>" for number in range(_NUM_SENTINELS)] if "sentinels" in special_tokens else []
    special = [*roles.values(), *sentinels]
    if vocab_size <= len(special) + _NUM_BYTES:
        raise Refused(
            f"data.tokenizer.vocab_size={vocab_size} is too small: {len(special)} special tokens and {_NUM_BYTES} bytes come before the first word. "
            f"Set it to {_round_up(len(special) + _NUM_BYTES)} or more."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
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
    config: dict[str, str | list[str]] = {f"{role}_token": token for role, token in roles.items()}
    _write_config(folder, config | ({"additional_special_tokens": sentinels} if sentinels else {}))


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
    special = {f"{role}_token": _special_token(role, tokenizer, source) for role in _ROLES}
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
    ids = {role: _id_of(_special_token(role, tokenizer, folder), tokenizer) for role in _ROLES}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    sentinels = {int(match[1]): id for token, id in vocabulary.items() if (match := _SENTINEL.fullmatch(token))}
    added = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    special = added.union(sentinels.values(), _listed(tokenizer, folder), (id for id in ids.values() if id is not None))
    return tokenizer, Vocabulary(
        size=max(vocabulary.values()) + 1,
        bos=ids["cls"] if ids["bos"] is None else ids["bos"],
        eos=ids["sep"] if ids["eos"] is None else ids["eos"],
        pad=ids["pad"],
        sha256=hash_tokenizer(folder),
        mask=ids["mask"],
        special=tuple(sorted(special)),
        sentinels=tuple(id for _, id in sorted(sentinels.items())),
    )


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


def _special_token(role: str, tokenizer: Tokenizer, folder: Path) -> str | None:
    """The token that is ``bos``, ``mask`` ... by the first file that knows it, else by the spelling that BERT made usual.

    Raises:
        Refused: it is not in the vocabulary.
    """
    for file in _TOKEN_FILES:
        token = _spelling(_read_json(folder / file).get(f"{role}_token"))
        if token is not None:
            if tokenizer.token_to_id(token) is None:
                raise Refused(
                    f"{folder / file} names {role}_token={token!r}, which tokenizer.json does not contain. Correct one of the two files."
                )
            return token
    id = _read_json(folder / "config.json").get(f"{role}_token_id")
    id = id[0] if isinstance(id, list) else id
    if id is None:
        usual = _CONVENTION.get(role)
        added = tokenizer.get_added_tokens_decoder().values()
        return usual if any(token.special and token.content == usual for token in added) else None
    if (token := tokenizer.id_to_token(id)) is None:
        raise Refused(
            f"{folder / 'config.json'} names {role}_token_id={id}, which is outside the vocabulary of tokenizer.json. Correct one of the two files."
        )
    return token


def _listed(tokenizer: Tokenizer, folder: Path) -> set[int]:
    """The ids of the special tokens without a role that a file lists."""
    names = ("additional_special_tokens", "extra_special_tokens")
    lists = [_read_json(folder / file).get(name) for file in _TOKEN_FILES for name in names]
    tokens = [token for listed in lists if listed for token in (listed.values() if isinstance(listed, dict) else listed)]
    return {id for token in tokens if (id := _id_of(_spelling(token), tokenizer)) is not None}


def _spelling(token: Any) -> str | None:
    """A token as these files give it: as text or as an object."""
    return token.get("content") if isinstance(token, dict) else token


def _id_of(token: str | None, tokenizer: Tokenizer) -> int | None:
    return None if token is None else tokenizer.token_to_id(token)


def _round_up(size: int) -> int:
    return -(-(size + 1) // 100) * 100


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise Refused(f"{path} is not valid JSON ({error}). Fetch it again or set data.tokenizer.path to another tokenizer.") from error


def _write_config(folder: Path, special_tokens: Mapping[str, str | list[str]]) -> None:
    path = folder / "tokenizer_config.json"
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **_read_json(path), **special_tokens}
    config.pop("auto_map", None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
