"""What the GPU benchmarks train on: words drawn by Zipf's law as text files, with a tokenizer that has an id for each; no download.

Everybody starts from the same Hugging Face folder (stock weights of ``transformers``' own initialisation) and sees the same micro-batches:
ours cuts them from the prepared corpus as it goes, the others find those of our loader ready in a file.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

SPECIAL = ("<|bos|>", "<|eos|>", "<|pad|>", "<|mask|>", "<|unk|>", *(f"<extra_id_{number}>" for number in range(100)))
SEED, IGNORE = 7, -100


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """A tokenizer of ``vocabulary`` entries whose words stand between blanks."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    words = [*SPECIAL, *(f"w{number}" for number in range(vocabulary - len(SPECIAL)))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", 0)])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {f"{role}_token": f"<|{role}|>" for role in ("bos", "eos", "pad", "mask", "unk")}
    named = {"tokenizer_class": "PreTrainedTokenizerFast", **roles, "additional_special_tokens": list(SPECIAL[5:])}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def write_corpus(folder: Path, vocabulary: int, tokens: int, longest: int | None) -> None:
    """About ``tokens`` words: one document without end, so that rows are full and plain; or many of at most ``longest`` words.

    The lengths of many are log-normal with a mean of an eighth of the longest, as those of instructions and answers are.
    """
    generator = np.random.default_rng(SEED)
    number = vocabulary - len(SPECIAL)
    shares = 1 / (np.arange(number) + 2.7)
    drawn = generator.choice(number, tokens, p=shares / shares.sum())
    words = np.char.add("w", drawn.astype(str))
    folder.mkdir()
    if longest is None:
        (folder / "all.txt").write_text(" ".join(words))
        return
    sigma = 1.0
    lengths = np.exp(generator.normal(np.log(longest / 8) - sigma**2 / 2, sigma, tokens)).astype(int).clip(4, longest - 2)
    ends = np.cumsum(lengths)
    with (folder / "all.jsonl").open("w") as file:
        for begin, end in zip([0, *ends], ends[ends <= tokens], strict=False):
            file.write(json.dumps({"text": " ".join(words[begin:end])}) + "\n")


def write_model(job: Any, folder: Path, device: str) -> None:
    """The job's model with transformers' own initialisation, drawn on the device, beside its tokenizer."""
    import torch

    from trainer.model.skeleton import CLASSES

    torch.manual_seed(SEED)
    with torch.device(device):
        model = CLASSES[job.skeleton.task].from_config(job.skeleton.model.config, dtype=torch.float32)
    model.save_pretrained(folder)
    del model
    if device == "cuda":
        torch.cuda.empty_cache()  # the contenders need the whole device


def write_batches(job: Any, path: Path, steps: int) -> tuple[int, int]:
    """The micro-batch of each step, as our loader makes them; returns the labels of a step on average, and its slots."""
    import torch
    from safetensors.torch import save_file

    from trainer.assembly import build_order, collator
    from trainer.data.loader import StepLoader

    train, samples = job.config.train, job.corpus.samples("train")
    loader = StepLoader(
        samples, build_order(job.config, samples), collator(job), global_batch=train.global_batch, micro_batch=train.micro_batch
    )
    batches = [micro_batches[0] for _, _, micro_batches in loader.steps(1, steps)]
    names = batches[0].inputs.keys() & {"input_ids", "decoder_input_ids"}
    tensors = {name: torch.stack([batch.inputs[name] for batch in batches]) for name in names}
    slots = sum(tensor[0].numel() for tensor in tensors.values())
    lengths = torch.stack([batch.inputs.get("lengths", torch.tensor(0)) for batch in batches])
    real = torch.arange(tensors["input_ids"].shape[-1]) < lengths[..., None]
    if "lengths" in batches[0].inputs and not real.all():  # the end of the corpus, where rows are padded
        tensors["attention_mask"] = real
    labels = torch.stack([_labels(batch) for batch in batches])
    save_file({name: tensor.int() for name, tensor in (tensors | {"labels": labels}).items()}, path)
    return int((labels != IGNORE).sum()) // steps, slots


def _labels(batch: Any) -> Any:
    """One for each slot that is written, also where the objective only has those of some places."""
    import torch

    if batch.places is None:
        return batch.labels
    flat = torch.full((batch.inputs["input_ids"].numel(),), IGNORE)
    flat[batch.places] = batch.labels
    return flat.view_as(batch.inputs["input_ids"])


def write_documents(job: Any, source: Path, path: Path) -> None:
    """The token ids of each document, for those who pad or flatten them themselves."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(job.corpus.tokenizer_folder / "tokenizer.json"))
    texts = [json.loads(line)["text"] for line in source.read_text().splitlines()]
    eos = tokenizer.token_to_id("<|eos|>")
    path.write_text(json.dumps([[*encoding.ids, eos] for encoding in tokenizer.encode_batch(texts)]))
