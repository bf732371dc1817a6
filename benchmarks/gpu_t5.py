"""G6: T5 base 1.1 by span corruption on one GPU, beside transformers.Trainer as shipped and compiled.

    python benchmarks/gpu_t5.py [--rehearse]

32 rows of 512 slots, with 114 to write, a step, bf16. Published: nanoT5 0.56 s for 128 rows on an A100, compiled.
"""

from gpu_race import Goal, Question, main

QUESTION = Question(
    name="gpu_t5",
    ident="G6",
    what="T5 base 1.1, 32 x (512 + 114) slots a step: labels per second",
    model=("model=t5_base", "model.feed_forward=gated-gelu", "model.intermediate_size=2048", "model.tie_embeddings=false"),
    small=("model.hidden_size=32", "model.num_layers=2", "model.num_heads=2", "model.intermediate_size=64"),
    vocabulary=32128,
    length=512,
    micro_batch=32,
    objective="span_corruption",
    contenders=("transformers.Trainer", "transformers.Trainer, compiled"),
    goals=(Goal("tokens_per_second", "transformers.Trainer", at_least=1.5),),
)

if __name__ == "__main__":
    main(QUESTION, __doc__)
