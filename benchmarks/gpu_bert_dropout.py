"""G5 with dropout 0.1, as BERT was trained. Each draws its own masks of dropout, so that losses agree in their mean over 20 steps.

python benchmarks/gpu_bert_dropout.py [--rehearse]
"""

from dataclasses import replace

from gpu_bert import QUESTION as PLAIN
from gpu_race import Goal, main

QUESTION = replace(
    PLAIN,
    name="gpu_bert_dropout",
    what="BERT base with dropout 0.1, 128 x 512 slots a step: slots per second",
    model=("model=bert_base", "model.dropout=0.1"),
    same_draws=False,
    goals=(Goal("tokens_per_second", "transformers.Trainer", at_least=1.30),),
)

if __name__ == "__main__":
    main(QUESTION, __doc__)
