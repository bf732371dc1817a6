"""Small models of every family, once as transformers has them and once as we score with them, with the same weights."""

import copy
from types import SimpleNamespace

import torch

from tests.unit.objective.corpora import VOCABULARY, context
from trainer.engine.loop import Loop
from trainer.model.decoders import Gpt2, Llama
from trainer.model.encoders import Bert, Roberta
from trainer.model.head import Scorer, swap_head
from trainer.model.pretrained import EncoderDecoder
from trainer.model.seq2seq import T5, Bart
from trainer.model.skeleton import CLASSES, build_skeleton
from trainer.types import IGNORE

SHAPE = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48}
WIDE = {"initializer_range": 0.2, "max_positions": 64}  # large values, so that attention weighs
MODELS = {
    "llama": Llama(**SHAPE, **WIDE, num_kv_heads=2),
    "gpt2": Gpt2(hidden_size=32, num_layers=2, num_heads=4, **WIDE),
    "bert": Bert(**SHAPE, **WIDE),
    "roberta": Roberta(**SHAPE, **WIDE),
    "t5": T5(**SHAPE),
    "t5 gated, untied": T5(**SHAPE, feed_forward="gated-gelu", tie_embeddings=False),
    "bart": Bart(**SHAPE, **WIDE),
}
SEQ2SEQ = ("t5", "t5 gated, untied", "bart", "encoder-decoder")


def model_of(family, folder):
    """The preset of a family; an encoder-decoder is made of two small BERTs that are written to ``folder`` first."""
    if family != "encoder-decoder":
        return MODELS[family]
    for name, layers in (("reads", 2), ("writes", 1)):
        config = Bert(**{**SHAPE, "num_layers": layers}, **WIDE).build_config(VOCABULARY)
        CLASSES["masked_lm"].from_config(config).save_pretrained(folder / name)
    return EncoderDecoder(encoder=str(folder / "reads"), decoder=str(folder / "writes"))


class Pair:
    """A stock model of transformers, and our way to score with the same weights.

    Attributes:
        stock: the model as transformers knows it, in evaluation mode.
        scorer: ours.
    """

    def __init__(self, model, objective, attention="sdpa", labels=None):
        model = copy.deepcopy(model)
        model.attention = attention
        self.objective = objective
        skeleton = build_skeleton(model, objective.task, VOCABULARY, model.fetch(), labels, objective.needs(32, None).label)
        torch.manual_seed(0)
        self.stock = CLASSES[objective.task].from_config(skeleton.model.config, attn_implementation=attention).eval()
        with torch.no_grad():
            for parameter in self.stock.parameters():
                parameter.add_(torch.randn_like(parameter) / 16)  # biases and norms too
        self.config = self.stock.config
        ours = copy.deepcopy(self.stock)
        self.scorer = Scorer(ours, swap_head(ours, skeleton.head), skeleton.family, skeleton.head.bias)
        self._loop = Loop(
            SimpleNamespace(model=ours, scorer=self.scorer, rehearses=False),
            SimpleNamespace(objective=objective, device=torch.device("cpu"), seed=0),
            0,
            1,
        )

    def collate(self, samples):
        return self.objective.collate(samples, context(decoder_start=getattr(self.config, "decoder_start_token_id", None)))

    def term(self, batch):
        """The one term of a batch, as the training loop gets it."""
        (term,) = self._loop.terms(batch, self.scorer).values()
        return term

    def loss(self, batch):
        """Our term divided by our count."""
        term = self.term(batch)
        return term.sum.item() / batch.counts[term.count_key]

    def their_loss(self, **inputs):
        with torch.no_grad():
            return self.stock(**inputs, use_cache=False).loss.item()


def mask_of(batch):
    """The padding mask as transformers' tokenizers write it."""
    ids = batch.inputs["input_ids"]
    if "lengths" not in batch.inputs:
        return torch.ones_like(ids)
    return (torch.arange(ids.shape[1]) < batch.inputs["lengths"][:, None]).long()


def whole_labels(batch):
    """Labels as transformers takes them: one for each slot."""
    labels = torch.full_like(batch.inputs["input_ids"], IGNORE)
    labels.view(-1)[batch.places] = batch.labels
    return labels


def pieces(rows):
    """(row, first slot, end) of each document, or of what of it is in a row."""
    for row, filled in enumerate(rows.filled.tolist()):
        begins = [0, *(slot for slot in range(1, filled) if rows.starts[row, slot])]
        yield from ((row, begin, end) for begin, end in zip(begins, [*begins[1:], filled], strict=True))
