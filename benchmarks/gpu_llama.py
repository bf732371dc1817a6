"""G2: a Llama of 1.1 billion parameters at full speed on one GPU, beside a compiled loop and transformers.Trainer.

    python benchmarks/gpu_llama.py [--rehearse] [--rounds 1]

8 rows of 2,048 tokens a step, vocabulary 32,000, masters in fp32, bf16, 60 steps. Published on 8 H100s: 45.5k tokens/s per GPU at 1.3 B
(llm-foundry), 42k at 1.24 B (nanotron).
"""

from gpu_race import Goal, Question, main

QUESTION = Question(
    name="gpu_llama",
    ident="G2",
    what="Llama 1.1B, 8 x 2048 tokens a step: labels per second",
    model=("model=llama_1b",),
    small=("model.hidden_size=32", "model.num_layers=2", "model.num_heads=2", "model.num_kv_heads=1", "model.intermediate_size=64"),
    vocabulary=32000,
    length=2048,
    micro_batch=8,
    contenders=("hand loop, compiled", "transformers.Trainer", "transformers.Trainer, compiled, liger"),
    goals=(
        Goal("tokens_per_second", "hand loop, compiled", at_least=0.99),
        Goal("tokens_per_second", "transformers.Trainer", at_least=1.30),
        Goal("tokens_per_second", "transformers.Trainer, compiled, liger", at_least=1.05),
        Goal("mfu", at_least=0.50),
    ),
)

if __name__ == "__main__":
    main(QUESTION, __doc__)
