"""G5 for BERT large.

python benchmarks/gpu_bert_large.py [--rehearse]
"""

from dataclasses import replace

from gpu_bert import QUESTION as BASE
from gpu_race import Goal, main

QUESTION = replace(
    BASE,
    name="gpu_bert_large",
    what="BERT large, 48 x 512 slots a step: slots per second",
    model=("model=bert_large",),
    micro_batch=48,
    goals=(Goal("tokens_per_second", "transformers.Trainer", at_least=1.30), Goal("slots_per_second", at_least=180_000)),
)

if __name__ == "__main__":
    main(QUESTION, __doc__)
