"""G5 for short rows.

python benchmarks/gpu_bert_short.py [--rehearse]
"""

from dataclasses import replace

from gpu_bert import QUESTION as LONG
from gpu_race import Goal, main

QUESTION = replace(
    LONG,
    name="gpu_bert_short",
    what="BERT base, 512 x 128 slots a step: slots per second",
    length=128,
    micro_batch=512,
    goals=(Goal("tokens_per_second", "transformers.Trainer", at_least=1.30),),
)

if __name__ == "__main__":
    main(QUESTION, __doc__)
