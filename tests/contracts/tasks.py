"""What is trained in the contract suites: every family under every objective, each as overrides of the tiny run."""

import json
from pathlib import Path

from trainer.testing import run_ranks

SMOOTH = "model.feed_forward=gated-gelu"
"""For T5 where curves are compared: of a ReLU that is zero but for rounding, rounding says which way the gradient goes (decision 0010)."""

TEXT = {
    "llama": ["model=llama_tiny"],
    "gpt2": ["model=gpt2_tiny"],
    "bert": ["objective=masked_lm", "model=bert_tiny"],
    "roberta": ["objective=masked_lm", "model=roberta_tiny", "objective.whole_word=true"],
    "t5 spans": ["objective=span_corruption", "model=t5_tiny", SMOOTH],
    "bart spans": ["objective=span_corruption", "model=bart_tiny"],
}
"""Over the tiny corpus of paragraphs."""

RECORDS = {
    "t5": ["objective=seq2seq", "model=t5_tiny", SMOOTH],
    "bart": ["objective=seq2seq", "model=bart_tiny"],
    "two berts": ["objective=seq2seq", "model=encoder_decoder"],
    "bert classes": ["objective=classification", "model=bert_tiny"],
    "roberta classes": ["objective=classification", "model=roberta_tiny"],
    "llama classes": ["objective=classification", "model=llama_tiny"],
    "gpt2 classes": ["objective=classification", "model=gpt2_tiny"],
    "bert tags": ["objective=classification", "objective.kind=multi_label", "model=bert_tiny", "data.label=tags"],
    "roberta number": [
        "objective=classification",
        "objective.kind=regression",
        "model=roberta_tiny",
        "model.initializer_range=0.2",
        "data.label=number",
    ],
}
"""Over the same paragraphs as records, padded."""

NAMES = (*TEXT, *RECORDS)
STEADY = ["optimizer.eps=1e-6", "optimizer.lr=1e-3"]
"""For parity: at an eps of 1e-8 Adam makes steps of full size out of gradients that are only rounding, on one rank with two micro-batch sizes just
as on two strategies."""
CLIPPED = ["optimizer.max_grad_norm=0.2"]
SPREAD = "strategy.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0}}"
"""For zero3: else it keeps parameters of less than 100,000 elements whole on every rank, which all of a tiny model's are."""
SHAPE = ["model.hidden_size=32", "model.num_layers=2"]
LAYOUTS = {
    "tensor x fsdp": ["strategy=fsdp", "strategy.tensor=2"],
    "tensor x ddp": ["strategy=tensor", "strategy.tensor=2"],
    "tensor x hsdp": ["strategy=hsdp", "strategy.tensor=2"],
    "pipeline": ["strategy=pipeline", "train.micro_batch=4"],
    "3d": ["strategy=3d", "train.micro_batch=4"],
    "pipeline x fsdp": ["strategy=fsdp", "strategy.pipeline=2", "train.micro_batch=4"],
    "pipeline x ddp": ["strategy=ddp", "strategy.pipeline=2", "train.micro_batch=4"],
}
"""What is no preset alone: tensors split in two, or two stages, and the ranks that are left over as shards, as copies, or both. 1F1B, the
default schedule, wants as many micro-batches as there are stages."""


def layout(name: str) -> list[str]:
    """Overrides of a layout: a strategy, or one of ``LAYOUTS``."""
    return LAYOUTS.get(name, [f"strategy={name}"])


def data_ranks(name: str, ranks: int) -> int:
    """How many of the ranks of a layout see different samples."""
    parts = name.split(" x ")
    if name in ("tensor", "pipeline"):
        return 1
    return ranks // 4 if name == "3d" else ranks // 2 if parts[0] in ("tensor", "pipeline") else ranks


def write_records(folder: Path, file: Path) -> Path:
    """JSON lines out of the corpus' paragraphs: text and source, the first line as target, classes and a number that they depend on."""
    with file.open("w") as lines:
        for path in sorted(folder.glob("*.py")):
            for paragraph in path.read_text().split("\n\n")[:60]:
                if len(paragraph.strip()) < 20:
                    continue
                tags = [word for word in ("def", "class", "import", "return") if word in paragraph]
                first = paragraph.strip().splitlines()[0]
                record = {
                    "text": paragraph,
                    "source": paragraph,
                    "target": first,
                    "label": path.stem,
                    "tags": tags,
                    "number": len(paragraph) / 50,
                }
                lines.write(json.dumps(record) + "\n")
    return file


def write_bert(arguments: list[str], folder: Path) -> Path:
    """A tiny BERT with the corpus' tokenizer as a Hugging Face folder."""
    from tests.contracts.engines import write_stock

    run_ranks(write_stock, 1, [*arguments, *TEXT["bert"], *SHAPE], str(folder))
    return folder
