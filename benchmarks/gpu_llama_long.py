"""G2 at 4,096 tokens and a vocabulary of 128,256: Llama 1.24B on one GPU, beside a compiled loop and transformers.Trainer.

python benchmarks/gpu_llama_long.py [--rehearse] [--rounds 1]
"""

from dataclasses import replace

from gpu_llama import QUESTION as SHORT
from gpu_race import main

QUESTION = replace(
    SHORT,
    name="gpu_llama_long",
    what="Llama 1.24B, vocabulary 128,256, 2 x 4096 tokens a step: labels per second",
    vocabulary=128_256,
    length=4096,
    micro_batch=2,
)

if __name__ == "__main__":
    main(QUESTION, __doc__)
