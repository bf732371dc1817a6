"""Classification and regression of whole texts, by an encoder or a decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from trainer.schema import setting
from trainer.types import IGNORE, Batch, Context, LossTerms, Needs, Outputs, Samples, Scores, Term, Window

LABELS = {"single_label": "class", "multi_label": "classes", "regression": "number"}
"""What a record's label is (trainer.types.Needs) for each kind."""


@dataclass
class Classification:
    """Predicts a text's label."""

    task: ClassVar[str] = "classification"
    requires: ClassVar[dict[str, str]] = {"torchmetrics": "metrics"}

    kind: str = setting(
        "single_label",
        "one class per text, any number of classes (a list, or names separated by '|'), or a number",
        choices=tuple(LABELS),
        aliases=("problem_type",),
    )

    def needs(self, sequence_length: int, target_length: int | None) -> Needs:
        """Texts with labels, one text per row."""
        return Needs({"text": Window(sequence_length, sequence_length)}, packs=False, label=LABELS[self.kind])

    def collate(self, samples: Samples, context: Context) -> Batch:
        """Turns labelled texts into one micro-batch.

        Returns:
            inputs ``input_ids`` (B, L) and ``lengths`` (B,); labels (B,) classes with -100 for copies, or (B,) numbers or (B, C) zeros
            and ones with NaN for copies.
        """
        import numpy as np
        import torch

        rows, copies = samples.rows["text"], samples.ids < 0
        assert samples.labels is not None, "a corpus prepared for classification has labels"
        labels = samples.labels.copy()
        labels[copies] = IGNORE if self.kind == "single_label" else np.nan
        each = 1 if labels.ndim == 1 else labels.shape[1]
        return Batch(
            inputs={"input_ids": torch.from_numpy(rows.tokens), "lengths": torch.from_numpy(rows.filled)},
            labels=torch.from_numpy(labels),
            counts={"targets": int((~copies).sum()) * each},
            ids=torch.from_numpy(samples.ids),
        )

    def loss(self, scores: Scores, batch: Batch) -> LossTerms:
        """Summed cross entropy; over all classes of all texts when multi-label; the squared error of numbers."""
        import torch.nn.functional as F

        assert scores.logits is not None
        logits = scores.logits.float()
        if self.kind == "single_label":
            return {"nll": Term(F.cross_entropy(logits, batch.labels, ignore_index=IGNORE, reduction="sum"), "targets")}
        copies = batch.labels.isnan()
        truth = batch.labels.masked_fill(copies, 0.0)
        if self.kind == "regression":
            each = (logits[:, 0] - truth).square()
        else:
            each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        return {"squared_error" if self.kind == "regression" else "nll": Term(each.masked_fill(copies, 0.0).sum(), "targets")}

    def metrics(self, means: dict[str, float], outputs: Outputs) -> dict[str, float]:
        """``loss`` and what the kind is judged by, over all texts at once.

        Single-label: accuracy and macro F1. Multi-label: exact match, micro and macro F1 at probability 0.5. Regression: mean absolute
        error, Pearson and Spearman correlation.
        """
        from torchmetrics.functional import classification as judge
        from torchmetrics.functional import mean_absolute_error, pearson_corrcoef, spearman_corrcoef

        (loss,) = means.values()
        assert outputs.logits is not None and outputs.labels is not None
        logits, labels = outputs.logits.double(), outputs.labels
        if self.kind == "single_label":
            many: dict[str, Any] = {"num_classes": logits.shape[1]}
            told = {
                "accuracy": judge.multiclass_accuracy(logits, labels, average="micro", **many),
                "f1_macro": judge.multiclass_f1_score(logits, labels, average="macro", **many),
            }
        elif self.kind == "multi_label" and logits.shape[1] == 1:  # what the others refuse
            told = {
                "exact_match": judge.binary_accuracy(logits.sigmoid(), labels.long()),
                "f1": judge.binary_f1_score(logits.sigmoid(), labels.long()),
            }
        elif self.kind == "multi_label":
            many = {"num_labels": logits.shape[1]}
            told = {
                "exact_match": judge.multilabel_exact_match(logits.sigmoid(), labels.long(), **many),
                "f1_micro": judge.multilabel_f1_score(logits.sigmoid(), labels.long(), average="micro", **many),
                "f1_macro": judge.multilabel_f1_score(logits.sigmoid(), labels.long(), average="macro", **many),
            }
        else:
            guess, truth = logits[:, 0], labels.double()
            told = {"mean_absolute_error": mean_absolute_error(guess, truth)}
            if len(truth) > 1:
                told |= {"pearson": pearson_corrcoef(guess, truth), "spearman": spearman_corrcoef(guess, truth)}
        return {"loss": loss, **{name: float(value) for name, value in told.items()}}
