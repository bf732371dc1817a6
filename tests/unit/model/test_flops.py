"""The count of a step's arithmetic against torch's own counter, which sees every product of a real forward and backward."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.unit.objective.corpora import VOCABULARY, packed, padded, take
from tests.unit.objective.pairs import Pair, model_of
from trainer.model.flops import Flops, flops_of
from trainer.model.skeleton import build_skeleton
from trainer.objective.causal_lm import CausalLM
from trainer.objective.classification import Classification
from trainer.objective.masked_lm import MaskedLM
from trainer.objective.seq2seq import Seq2Seq

OBJECTIVES = {
    "llama": CausalLM(),
    "gpt2": CausalLM(),
    "bert": MaskedLM(),
    "roberta": MaskedLM(),
    "t5": Seq2Seq(),
    "t5 gated, untied": Seq2Seq(),
    "bart": Seq2Seq(),
    "encoder-decoder": Seq2Seq(),
}


def shapes(batch):
    target = batch.inputs.get("decoder_input_ids")
    return (*batch.inputs["input_ids"].shape, 0 if target is None else target.shape[1])


@pytest.mark.parametrize("family", OBJECTIVES)
def test_it_is_what_torch_counts(family, tmp_path):
    objective = OBJECTIVES[family]
    model = model_of(family, tmp_path)
    pair = Pair(model, objective, "eager")
    samples = (packed if objective.needs(32, None).packs else padded)(objective, 32)
    batch = pair.collate(take(samples, np.arange(min(8, len(samples)))))
    with FlopCounterMode(display=False) as counter:
        pair.term(batch).sum.backward()
    rows, width, target_width = shapes(batch)
    labels = batch.labels.numel()  # all that reach the head, -100 among them
    full, _ = flops_of(build_skeleton(model, objective.task, VOCABULARY, model.fetch())).step(rows, width, target_width, labels)
    assert full == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_a_classifiers_few_weights_behind_the_blocks_are_left_out(tmp_path):
    objective = Classification()
    model = model_of("bert", tmp_path)
    pair = Pair(model, objective, "eager", labels=("a", "b", "c"))
    batch = pair.collate(take(padded(objective, 32), np.arange(8)))
    with FlopCounterMode(display=False) as counter:
        pair.term(batch).sum.backward()
    full, _ = flops_of(build_skeleton(model, objective.task, VOCABULARY, labels=("a", "b", "c"))).step(*shapes(batch), 0)
    assert full == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_a_causal_mask_halves_the_last_stacks_own_attention():
    counts = {"slot": 1, "target_slot": 2, "label": 3, "pair": 10, "target_pair": 20, "cross_pair": 5}
    assert Flops(**counts, causal=False).step(2, 4, 0, 6) == (2 * (4 + 160) + 18,) * 2
    assert Flops(**counts, causal=True).step(2, 4, 0, 6) == (346, 346 - 160)
    full, causal = Flops(**counts, causal=True).step(2, 4, 3, 6)
    assert full == 2 * (4 + 160 + 3 * 2 + 9 * 20 + 3 * 4 * 5) + 18 and full - causal == 180


def test_gpt2_has_the_count_that_everybody_quotes():
    """0.857 and 0.801 billion per token at 1,024 positions, and 0.744 of weights alone (124 million of them)."""
    from trainer.model.decoders import Gpt2
    from trainer.types import Vocabulary

    with torch.device("meta"):
        skeleton = build_skeleton(
            Gpt2(hidden_size=768, num_layers=12, num_heads=12, max_positions=1024), "causal_lm", Vocabulary(50257, 0, 1, 2, "")
        )
    full, causal = flops_of(skeleton).step(1, 1024, 0, 1024)
    assert full / 1024 == pytest.approx(0.857e9, rel=0.005) and causal / 1024 == pytest.approx(0.801e9, rel=0.005)
