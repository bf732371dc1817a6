"""A pass over the held-out samples: every sample counts once, however many ranks share them and however uneven the last batch is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.types import IGNORE, Batch, Evaluation, LossTerms, Outputs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trainer.protocols import Engine, Objective


_EXAMPLES = 3


@dataclass(frozen=True)
class Writer:
    """How targets are written for held-out sources, to be compared with the true ones.

    Attributes:
        tokenizer: turns ids into text.
        num_samples: of how many sources.
        max_new_tokens: longest target.
        num_beams: 1 is greedy.
    """

    tokenizer: PreTrainedTokenizerBase
    num_samples: int
    max_new_tokens: int
    num_beams: int = 1

    def write(self, engine: Engine, batches: Iterable[Batch]) -> Iterator[Tensor]:
        """Yields, for each micro-batch, ids (B, max_new_tokens + 1) that the model writes, filled up behind the end; on the CPU."""
        with engine.inference() as (model, arguments):
            for batch in batches:
                source = batch.inputs["input_ids"]
                lengths = batch.inputs.get("lengths", torch.full((len(source),), source.shape[1]))  # left out where all rows are full
                mask = torch.arange(source.shape[1]) < lengths[:, None]
                written = model.generate(
                    source.to(engine.device),
                    attention_mask=mask.long().to(engine.device),
                    max_new_tokens=self.max_new_tokens,
                    num_beams=self.num_beams,
                    do_sample=False,
                    **arguments,
                ).cpu()
                full = torch.full((len(source), self.max_new_tokens + 1), self._fill)
                full[:, : written.shape[1]] = written
                yield full

    def read(self, ids: Tensor) -> tuple[str, ...]:
        """The texts of ids (n, T), special tokens left out; -100 counts as one."""
        return tuple(self.tokenizer.batch_decode(ids.masked_fill(ids == IGNORE, self._fill), skip_special_tokens=True))

    @property
    def _fill(self) -> int:
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(id for id in known if id is not None)


@dataclass
class _Totals:
    """Sums over one part of the held-out samples, this rank's until they are added up."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    counted: dict[str, str] = field(default_factory=dict)
    pieces: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, terms: LossTerms, counts: dict[str, int]) -> None:
        self.counted = {name: term.count_key for name, term in terms.items()}
        sums = {name: term.sum.double() for name, term in terms.items()}
        for name, value in {**sums, **{f"#{key}": torch.tensor(count, dtype=torch.float64) for key, count in counts.items()}}.items():
            self.terms[name] = self.terms[name] + value if name in self.terms else value

    def keep(self, name: str, value: Tensor) -> None:
        self.pieces.setdefault(name, []).append(value)


class Evaluator:
    """Measures a model on held-out samples.

    Args:
        engine: scores micro-batches.
        objective: knows what to report.
        held_out: gives the micro-batches, anew at each call, by the name of the source; one source is named "".
        writer: for objectives that are judged by what the model writes.
        sample: lets the model go on from a prompt, and returns both; None: it is not asked to.
    """

    def __init__(
        self,
        engine: Engine,
        objective: Objective,
        held_out: Mapping[str, Callable[[], Iterable[Batch]]],
        writer: Writer | None = None,
        sample: Callable[[], tuple[str, str]] | None = None,
    ):
        self._engine = engine
        self._objective = objective
        self._held_out = held_out
        self._writer = writer
        self._sample = sample

    def evaluate(self, step: int) -> Evaluation:
        """The objective's metrics over all held-out samples, and over those of each source where there are several."""
        passes = {name: self._pass_over(batches) for name, batches in self._held_out.items()}
        self._write(passes.values())
        parts = {name: totals for name, (totals, _) in passes.items()}
        whole = self._measure(step, list(parts.values()))
        of_parts = {name: self._measure(step, [totals]).metrics for name, totals in parts.items() if name}
        named = {f"{name}/{metric}": value for name, metrics in of_parts.items() for metric, value in metrics.items()}
        return replace(whole, metrics=whole.metrics | named, sample=self._sample and self._sample())

    def _pass_over(self, batches: Callable[[], Iterable[Batch]]) -> tuple[_Totals, list[Batch]]:
        """Sums over one source, and the micro-batches of it for which the model has to write."""
        totals, to_write = _Totals(), list[Batch]()
        for batch in batches():
            terms, scores = self._engine.score(batch)
            totals.add(terms, batch.counts)
            if scores.logits is not None:
                totals.keep("logits", self._gathered(scores.logits.float()))
                totals.keep("labels", self._gathered(batch.labels))
                totals.keep("ids", self._gathered(batch.ids))
            if self._writer and sum(len(one.labels) for one in to_write) * self._engine.data_size < self._writer.num_samples:
                to_write.append(batch)
        return totals, to_write

    def _write(self, passes: Iterable[tuple[_Totals, list[Batch]]]) -> None:
        """Lets the model write for all sources at once: one that lies in stages is put together for it."""
        waiting = [(totals, batch) for totals, to_write in passes for batch in to_write]
        if self._writer is None or not waiting:
            return
        for (totals, batch), written in zip(waiting, self._writer.write(self._engine, [batch for _, batch in waiting]), strict=True):
            totals.keep("written", self._gathered(written))
            totals.keep("labels", self._gathered(batch.labels))
            totals.keep("ids", self._gathered(batch.ids))

    def _gathered(self, values: Tensor | None) -> Tensor:
        assert values is not None, "an objective whose outputs are compared says which sample each is"
        return self._engine.gather_over_data(values).cpu()

    def _measure(self, step: int, parts: list[_Totals]) -> Evaluation:
        names = list(parts[0].terms)
        device = parts[0].terms[names[0]].device
        local = torch.stack(
            [sum((part.terms[name].double().to(device) for part in parts), torch.zeros((), device=device)) for name in names]
        )
        summed = dict(zip(names, self._engine.sum_over_data(local).tolist(), strict=True))
        means = {name: summed[name] / max(1.0, summed[f"#{key}"]) for name, key in parts[0].counted.items()}
        outputs = self._outputs(parts)
        examples = tuple(zip(outputs.texts, outputs.references, strict=True))[:_EXAMPLES]
        return Evaluation(step, self._objective.metrics(means, outputs), int(summed["#targets"]), examples)

    def _outputs(self, parts: list[_Totals]) -> Outputs:
        if "ids" not in parts[0].pieces:
            return Outputs()
        if self._writer is None:
            return Outputs(logits=_joined(parts, "logits"), labels=_joined(parts, "labels"))
        most = self._writer.num_samples
        return Outputs(
            texts=self._writer.read(_joined(parts, "written", most)), references=self._writer.read(_joined(parts, "labels", most))
        )


def _joined(parts: list[_Totals], name: str, most: int | None = None) -> Tensor:
    """Each part's samples, its first ``most``, one under the other; narrower pieces (padded batches differ) are filled up."""
    widest = max(piece.shape[-1] for part in parts for piece in part.pieces[name])
    joined = []
    for part in parts:
        real = torch.cat(part.pieces["ids"]) >= 0
        fill: Any = IGNORE if part.pieces[name][0].dtype == torch.int64 else 0.0
        whole = [piece if piece.ndim == 1 else F.pad(piece, (0, widest - piece.shape[-1]), value=fill) for piece in part.pieces[name]]
        joined.append(torch.cat(whole)[real][:most])
    return torch.cat(joined)
