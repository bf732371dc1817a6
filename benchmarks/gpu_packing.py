"""G7: documents of very different lengths, packed under document masks, beside transformers.Trainer padded and flattened, on one GPU.

    python benchmarks/gpu_packing.py [--rehearse]

Llama of 8 blocks, 0.6B, so that the peer's worst batch fits; lengths are log-normal with a mean of 256 tokens and at most 2,048. Ours fills
2 rows of 2,048 a step, under the attention that a packed run takes by default; the peer gets 16 documents, on average as many tokens. What
counts is labels per second. Batches differ, so what has to agree is the mean loss over 20 steps, and that a packed row has each document's
own loss is shown by tests/contracts/test_packing.py.
"""

from dataclasses import replace

from gpu_llama import QUESTION as LLAMA
from gpu_race import Goal, main

QUESTION = replace(
    LLAMA,
    name="gpu_packing",
    ident="G7",
    what="Llama 0.6B on documents of 256 tokens on average: labels per second",
    model=("model=llama_1b", "model.num_layers=8"),
    micro_batch=2,
    longest=2048,
    same_draws=False,
    contenders=("transformers.Trainer", "transformers.Trainer, flattened"),
    tolerance=2e-2,
    goals=(
        Goal("tokens_per_second", "transformers.Trainer", at_least=2.0),
        Goal("tokens_per_second", "transformers.Trainer, flattened", at_least=1.05),
    ),
)

if __name__ == "__main__":
    main(QUESTION, __doc__)
