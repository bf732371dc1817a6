"""The scorer decides about packing on the host: nothing asks the device, and the scores are those of transformers' own decision."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers.masking_utils
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig

from tests.unit.objective.corpora import LENGTHS, VOCABULARY, packed, padded, take
from tests.unit.objective.pairs import MODELS, SEQ2SEQ, Pair, model_of, pieces
from trainer.model.attention import Attending, attends_fully, drop_plain
from trainer.model.head import Scorer, swap_head
from trainer.model.lookup import family_of
from trainer.objective.causal_lm import CausalLM
from trainer.objective.classification import Classification
from trainer.objective.masked_lm import MaskedLM
from trainer.objective.seq2seq import Seq2Seq
from trainer.objective.span_corruption import SpanCorruption
from trainer.parallel.dropout import may_drop

LENGTH = 12
LLAMA = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
}
CONFIGS = {
    "llama": LlamaConfig(**LLAMA),
    "gpt2": GPT2Config(vocab_size=40, n_positions=LENGTH, n_embd=16, n_layer=2, n_head=2),
    "mistral": MistralConfig(**LLAMA, sliding_window=None),
    "mistral, sliding": MistralConfig(**LLAMA, sliding_window=4),
}
PLAIN = torch.arange(LENGTH).expand(2, -1)
PACKED = torch.tensor([[0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 4, 5], [*range(LENGTH)]])


def build(name, attention="sdpa"):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention).eval()


def never_asked(*_):
    raise AssertionError("transformers was asked whether rows are packed")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("positions", [PLAIN, PACKED], ids=["plain", "packed"])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_scores_are_those_of_transformers(monkeypatch, name, positions, attention):
    model, asked = build(name, attention), attention == "eager" or "sliding" in name
    ids, labels = torch.randint(40, (2, LENGTH)), torch.randint(40, (2, LENGTH))
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    assert attends_fully(model.config) == (not asked)
    if not asked:
        monkeypatch.setattr(transformers.masking_utils, "find_packed_sequence_indices", never_asked)
    family = family_of(model.config.model_type)
    scorer = Scorer(model, swap_head(model, family.head("causal_lm")), family)
    scores = scorer(drop_plain({"input_ids": ids, "position_ids": positions}), labels)
    assert (scores - expected).abs().max() < 1e-5
    assert model.config._attn_implementation == attention, "the model is what it was, for whoever calls it next"


def test_positions_are_left_out_where_they_say_nothing():
    ids = torch.zeros_like(PLAIN)
    assert drop_plain({"input_ids": ids, "position_ids": PLAIN}).keys() == {"input_ids"}
    assert drop_plain({"input_ids": ids, "position_ids": PACKED}).keys() == {"input_ids", "position_ids"}
    late = PLAIN.clone()
    late[1, -1] = 0
    assert "position_ids" in drop_plain({"input_ids": ids, "position_ids": late}), "a document that begins in the last slot"
    assert drop_plain({"input_ids": ids}).keys() == {"input_ids"}


@pytest.mark.parametrize(
    ("config", "drops"),
    [
        (LlamaConfig(), False),
        (LlamaConfig(attention_dropout=0.1), True),
        (GPT2Config(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, summary_first_dropout=0), False),
        (GPT2Config(), True),
    ],
)
def test_dropout_is_found_in_the_config(config, drops):
    assert may_drop(SimpleNamespace(config=config, modules=lambda: iter(()))) == drops


def test_dropout_is_found_among_the_modules():
    model = SimpleNamespace(config=LlamaConfig(), modules=lambda: iter([torch.nn.Linear(1, 1), torch.nn.Dropout(0.1)]))
    assert may_drop(model)


def everything(objective, length=40):
    samples = (packed if objective.needs(length, None).packs else padded)(objective, length)
    return take(samples, np.arange(len(samples)))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
class TestBothWays:
    @torch.no_grad()
    def test_packed_documents_do_not_see_each_other(self, family, attention):
        pair = Pair(MODELS[family], MaskedLM(), attention)
        taken = everything(pair.objective)
        rows, ids = taken.rows["text"], torch.from_numpy(taken.rows["text"].tokens)
        inputs = pair.collate(taken).inputs | {"input_ids": ids}
        with Attending(pair.config, family_of(family)).to(drop_plain(inputs)) as told:
            together = pair.stock(**told).logits
        assert rows.filled[-1] < rows.tokens.shape[1], "the last row is not full"
        worst = max(
            (together[row, begin:end] - pair.stock(ids[row : row + 1, begin:end]).logits[0]).abs().max() for row, begin, end in pieces(rows)
        )
        assert worst < 1e-5 * together.abs().max()
        # Control: in one row they do see each other, and the comparison above notices.
        with Attending(pair.config, family_of(family)).to({"input_ids": ids}) as told:
            leaked = pair.stock(**told).logits
        assert (leaked - together)[torch.from_numpy(rows.real)].abs().max() > 0.05 * together.abs().max()

    @torch.no_grad()
    def test_a_row_scores_the_same_whatever_rows_are_beside_it(self, family, attention):
        """Packed rows beside packed ones, beside plain ones, alone, and with the padding id inside their text."""
        pair = Pair(MODELS[family], MaskedLM(), attention)
        samples = packed(pair.objective, 20)
        rows = take(samples, np.arange(len(samples))).rows["text"]
        plain = [row for row in range(len(samples)) if not rows.starts[row, 1:].any() and rows.filled[row] == 20]
        assert plain and len(plain) < len(samples) - 2

        def nll(ids):
            taken = take(samples, ids)
            taken.rows["text"].tokens[:, 7] = VOCABULARY.pad
            return pair.term(pair.collate(taken)).sum.item()

        whole, alone = nll(np.arange(len(samples))), {row: nll([row]) for row in range(len(samples))}
        assert whole == pytest.approx(sum(alone.values()), rel=1e-6)
        assert nll([plain[0], 0]) == pytest.approx(alone[plain[0]] + alone[0], rel=1e-6)


def test_robertas_positions_begin_after_the_padding_id_and_do_not_skip_it():
    config, family = MODELS["roberta"].build_config(VOCABULARY), family_of("roberta")
    ids = torch.tensor([[10, VOCABULARY.pad, 12, 13]])
    first = VOCABULARY.pad + 1
    with Attending(config, family).to({"input_ids": ids}) as told:
        assert told["position_ids"].tolist() == [[first, first + 1, first + 2, first + 3]] and "attention_mask" not in told
    with Attending(config, family).to({"input_ids": ids, "position_ids": torch.tensor([[0, 1, 0, 1]])}) as told:
        assert told["position_ids"].tolist() == [[first, first + 1, first, first + 1]]
    assert family.longest(config) == 64, "as many as were asked for"


def test_full_rows_of_one_document_need_no_mask():
    ids = torch.zeros(2, 4, dtype=torch.int64)
    inputs = {"input_ids": ids, "position_ids": torch.arange(4).expand(2, -1), "lengths": torch.tensor([4, 4])}
    with Attending(MODELS["bert"].build_config(VOCABULARY), family_of("bert")).to(drop_plain(inputs)) as told:
        assert told.keys() == {"input_ids"}
    short = inputs | {"lengths": torch.tensor([4, 3])}
    assert drop_plain(short).keys() == {"input_ids", "lengths"}


OBJECTIVES = {
    "masked_lm": (MaskedLM(), ("bert", "roberta")),
    "classification": (Classification("regression"), ("bert", "roberta", "llama", "gpt2")),
    "causal_lm": (CausalLM(), ("llama", "gpt2")),
    "seq2seq": (Seq2Seq(), SEQ2SEQ),
    "span_corruption": (SpanCorruption(), SEQ2SEQ),
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("task", "family"), [(task, family) for task, (_, families) in OBJECTIVES.items() for family in families])
@torch.no_grad()
def test_padding_changes_no_loss(tmp_path, task, family, attention):
    """The same samples in rows of three widths, and one by one."""
    objective = OBJECTIVES[task][0]
    pair = Pair(model_of(family, tmp_path), objective, attention)
    samples, ids = padded(objective, 56), np.arange(len(LENGTHS))

    def nll(ids, more=0):
        widths = {name: width + more for name, width in samples.widths(ids).items()}
        return pair.term(pair.collate(take(samples, ids, widths=widths))).sum.item()

    expected = nll(ids)
    assert expected > 1 and [nll(ids, 8), nll(ids, 16)] == [pytest.approx(expected, rel=1e-6)] * 2
    assert sum(nll(ids[[place]]) for place in ids) == pytest.approx(expected, rel=1e-6)
