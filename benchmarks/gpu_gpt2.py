"""G1: GPT-2 124M at full speed on one GPU, beside a hand-written compiled loop.

    python benchmarks/gpu_gpt2.py [--rehearse]

64 rows of 1,024 tokens a step, bf16, fused AdamW, 60 steps. Published: llm.c 468k and modded-nanogpt 462k tokens/s per H100, on 8.
"""

from gpu_race import Goal, Question, main

QUESTION = Question(
    name="gpu_gpt2",
    ident="G1",
    what="GPT-2 124M, 64 x 1024 tokens a step: labels per second",
    model=("model=gpt2",),
    small=("model.hidden_size=32", "model.num_layers=2", "model.num_heads=2"),
    vocabulary=50304,
    length=1024,
    micro_batch=64,
    contenders=("hand loop, compiled",),
    goals=(
        Goal("tokens_per_second", "hand loop, compiled", at_least=0.99),
        Goal("tokens_per_second", at_least=400_000),
        Goal("mfu", at_least=0.347),
    ),
)

if __name__ == "__main__":
    main(QUESTION, __doc__)
