"""G4: GPT-2 1558M without activation checkpointing on one GPU, beside a hand-written compiled loop.

    python benchmarks/gpu_gpt2_xl.py [--rehearse]

8 rows of 1,024 tokens a step, bf16, 60 steps. Published: llm.c 46.8k tokens/s per H100, on 8.
"""

from dataclasses import replace

from gpu_gpt2 import QUESTION as SMALLEST
from gpu_race import Goal, main

QUESTION = replace(
    SMALLEST,
    name="gpu_gpt2_xl",
    ident="G4",
    what="GPT-2 1558M, 8 x 1024 tokens a step: labels per second",
    model=("model=gpt2", "model.hidden_size=1600", "model.num_layers=48", "model.num_heads=25"),
    micro_batch=8,
    goals=(Goal("tokens_per_second", "hand loop, compiled", at_least=0.99), Goal("tokens_per_second", at_least=44_000)),
)

if __name__ == "__main__":
    main(QUESTION, __doc__)
