"""Protocol Objective: a loss is a sum over samples, its counts are right, its labels stand where the outputs are; and the gate that minds it."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from trainer import config
from trainer.data.config import Text
from trainer.data.prepare import prepare
from trainer.objective.additive import objective_problems
from trainer.objective.causal_lm import IGNORE, CausalLM
from trainer.testing import last_wins, run_ranks
from trainer.types import Scores, Term

OBJECTIVES = [cls() for cls in config.GROUPS["objective"].values()]


@pytest.fixture(scope="session")
def rows(corpus_folder, tmp_path_factory):
    """Real rows with many documents each, and a last one that is not full."""
    data = Text(path=str(corpus_folder), document="paragraph", sequence_length=32, cache_dir=str(tmp_path_factory.mktemp("cache")))
    data.tokenizer.vocab_size = 512
    return prepare(data).rows("train")


def one_row(rows, number):
    return rows.take(np.array([number]))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
class TestEveryObjective:
    def test_passes_the_gate(self, objective, rows):
        assert objective_problems(objective, rows) == []

    def test_terms_and_counts_of_a_batch_are_the_sums_of_its_samples(self, objective, rows):
        ids = np.array([3, 0, len(rows) - 1, 8, 5])
        batch = objective.collate(rows.take(ids))
        nll = torch.rand(batch.labels.shape, generator=torch.Generator().manual_seed(0)) * 9
        whole = objective.loss(Scores(nll), batch)
        singles = [objective.collate(one_row(rows, number)) for number in ids]
        parts = [objective.loss(Scores(nll[i : i + 1]), single) for i, single in enumerate(singles)]
        for name, term in whole.items():
            assert term.sum.ndim == 0 and term.count_key in batch.counts
            assert term.sum.item() == pytest.approx(sum(part[name].sum.item() for part in parts), rel=1e-6)
        for key, count in batch.counts.items():
            assert count == sum(single.counts[key] for single in singles)

    def test_a_filler_has_inputs_but_no_targets(self, objective, rows):
        filler, real = objective.collate(rows.take(np.array([-1]))), objective.collate(one_row(rows, 0))
        assert (filler.labels == IGNORE).all() and not any(filler.counts.values())
        assert {name: tensor.shape for name, tensor in filler.inputs.items()} == {
            name: tensor.shape for name, tensor in real.inputs.items()
        }

    def test_tensors_are_what_models_and_pipes_take(self, objective, rows):
        batch = objective.collate(rows.take(np.arange(3)))
        assert batch.labels.dtype == torch.int64 and len(batch.labels) == 3
        assert all(tensor.is_contiguous() and len(tensor) == 3 for tensor in batch.inputs.values())


def test_the_label_at_a_place_is_the_token_after_it(rows):
    batch = CausalLM().collate(rows.take(np.arange(50)))
    ids, positions, labels = batch.inputs["input_ids"], batch.inputs["position_ids"], batch.labels
    follows = positions[:, 1:] > 0  # the next slot goes on with the same document
    assert torch.equal(labels[:, :-1][follows], ids[:, 1:][follows]) and (labels[:, :-1][~follows] == IGNORE).all()
    assert (labels != IGNORE).sum() == batch.counts["targets"] and 0 < (~follows).sum() < follows.sum()


class MeanOfTokens(CausalLM):
    def loss(self, scores, batch):
        return {"nll": Term(scores.nll.sum() / max(1, batch.counts["targets"]), "targets")}


class MeanOfRows(CausalLM):
    def loss(self, scores, batch):
        return {"nll": Term(scores.nll.sum(-1).mean(), "targets")}


class Contrast(CausalLM):
    """Each sample's share depends on which others are beside it."""

    def loss(self, scores, batch):
        per_row = scores.nll.sum(-1)
        return {"nll": Term(scores.nll.sum(), "targets"), "contrast": Term((per_row - per_row.mean()).square().sum(), "targets")}


class CountsBatches(CausalLM):
    def collate(self, rows):
        batch = super().collate(rows)
        batch.counts["batches"] = 1
        return batch


class CountsNothing(CausalLM):
    def loss(self, scores, batch):
        return {"nll": Term(scores.nll.sum(), "tokens")}


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (
            MeanOfTokens(),
            r"objective MeanOfTokens: term 'nll' is \S+ for 4 rows, but \S+ when they come apart\. It must be a sum over samples",
        ),
        (MeanOfRows(), r"objective MeanOfRows: term 'nll' is"),
        (Contrast(), r"objective Contrast: term 'contrast' is"),
        (CountsBatches(), r"objective CountsBatches: count 'batches' is 1 for 4 rows, but 2 when"),
        (CountsNothing(), r"objective CountsNothing: term 'nll' is divided by the count 'tokens', but collate counts only targets\."),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, CausalLM) else "",
)
def test_what_is_no_sum_over_samples_is_refused(rows, objective, said):
    (problem,) = objective_problems(objective, rows)
    assert re.search(said, problem), problem


def test_a_corpus_of_one_row_will_do():
    from trainer.data.rows import PackedRows

    rows = PackedRows(np.arange(9, dtype=np.uint16), np.zeros(1, np.int64), 8, fill=0)
    assert len(rows) == 1
    assert objective_problems(CausalLM(), rows) == [] and len(objective_problems(MeanOfTokens(), rows)) == 1


@dataclass
class MeanPlugin(MeanOfTokens):
    """As a user would write and register it."""


def train_with_plugin(arguments):
    import trainer
    from trainer.testing import train_here

    trainer.register("objective", "mean_lm", MeanPlugin)
    return train_here(arguments)


def test_the_front_door_refuses_a_mean_before_anything_is_begun(tiny, tmp_path):
    arguments = last_wins([*tiny, "objective=mean_lm", f"run.dir={tmp_path / 'run'}"])
    with pytest.raises(AssertionError, match=r"Refused: objective MeanPlugin: term 'nll' is .* never a mean"):
        run_ranks(train_with_plugin, 2, arguments)
    assert not (tmp_path / "run").exists()
