"""G13: what the host costs per step when a step takes the GPU under 5 ms, beside a hand-written loop, Accelerate and transformers.Trainer.

    python benchmarks/gpu_overhead.py [--rehearse]

A Llama of 7 million parameters, 8 rows of 128 tokens, 200 steps, nobody compiled. That the host waits for the device at log intervals only
is shown by tests/gpu/test_no_sync.py.
"""

from gpu_race import Goal, Question, main

QUESTION = Question(
    name="gpu_overhead",
    ident="G13",
    what="Llama of 7 million parameters, 8 x 128 tokens a step: seconds per step",
    model=("model=llama_tiny", "model.hidden_size=256", "model.num_layers=6", "model.num_heads=4", "model.intermediate_size=768"),
    small=("model.hidden_size=32", "model.num_layers=2"),
    vocabulary=8192,
    length=128,
    micro_batch=8,
    steps=200,
    faster=(),
    contenders=("hand loop", "accelerate", "transformers.Trainer"),
    goals=(Goal("seconds_per_step", "hand loop", at_most=100e-6, beyond=True),),
)

if __name__ == "__main__":
    main(QUESTION, __doc__)
