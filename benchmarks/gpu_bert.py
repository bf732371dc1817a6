"""G5: BERT base by masked language modelling on one GPU, beside transformers.Trainer, compiled and as shipped.

    python benchmarks/gpu_bert.py [--rehearse]

128 rows of 512 slots a step, bf16, dropout 0. All get the same masked rows; masking is part of our loader's work and not of the peers'.
"""

from gpu_race import Goal, Question, main

QUESTION = Question(
    name="gpu_bert",
    ident="G5",
    what="BERT base, 128 x 512 slots a step: slots per second",
    model=("model=bert_base",),
    small=("model.hidden_size=32", "model.num_layers=2", "model.num_heads=2", "model.intermediate_size=64"),
    vocabulary=30528,
    length=512,
    micro_batch=128,
    objective="masked_lm",
    contenders=("transformers.Trainer", "transformers.Trainer, compiled"),
    goals=(Goal("tokens_per_second", "transformers.Trainer", at_least=1.30), Goal("slots_per_second", at_least=550_000)),
)

if __name__ == "__main__":
    main(QUESTION, __doc__)
