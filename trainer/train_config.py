"""How long a run trains, in which batches, and with what."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.schema import setting


@dataclass
class TrainConfig:
    """How long and in which batches."""

    steps: int = setting(
        780,
        "optimizer steps of the whole run; the schedule's length",
        minimum=1,
        aliases=("max_steps", "num_steps", "total_steps", "iterations"),
    )
    global_batch: int = setting(
        16, "samples per optimizer step over all ranks", minimum=1, aliases=("batch_size", "global_batch_size", "train_batch_size")
    )
    micro_batch: int = setting(
        4,
        "most samples per forward on one data rank; accumulation is derived",
        minimum=1,
        aliases=("per_device_train_batch_size", "micro_batch_size", "train_micro_batch_size_per_gpu"),
    )
    activation_checkpointing: str | None = setting(
        None,
        "compute blocks again for their backward instead of keeping activations: full, or selective (matrix products are kept)",
        choices=("full", "selective"),
        aliases=("gradient_checkpointing", "recompute", "activation_recompute"),
    )
    activation_checkpointing_every: int = setting(1, "of so many blocks one is computed again", minimum=1)
    cross_entropy: str = setting(
        "dense",
        "how the head makes losses: dense, or chunked: the logits of a micro-batch never exist at once, and are computed again in the backward",
        choices=("dense", "chunked"),
        aliases=("fused_linear_cross_entropy", "chunked_cross_entropy"),
    )
    cross_entropy_chunk: int = setting(1024, "chunked: so many tokens have logits at a time", minimum=1)
    compile: bool = setting(
        False, "run each block as code that torch.compile makes of it; the first steps take longer", aliases=("torch_compile",)
    )
    attention: str | None = setting(
        None,
        "how attention keeps packed documents and padding apart: by a mask (sdpa), or by torch's kernels that know where documents begin, which "
        "need CUDA: varlen (bf16), flex; None: varlen where device, precision and model have it, else sdpa",
        choices=("sdpa", "varlen", "flex"),
    )
    seed: int = setting(0, "seed of weights, sample order and dropout", minimum=0, aliases=("random_seed",))
    stop_after: int | None = setting(
        None, "stop after this step with a checkpoint, exit 0; the schedule stays that of train.steps", minimum=1
    )
    log_every: int = setting(
        10,
        "steps between reads of the device: metrics, progress and requests to stop",
        minimum=1,
        aliases=("logging_steps", "log_interval", "log_freq"),
    )
    evaluate_every: int | None = setting(
        None, "steps between evaluations on the held-out split; None: only at the end", minimum=1, aliases=("eval_steps", "eval_interval")
    )
    evaluate_samples: int = setting(
        128,
        "held-out samples per evaluation (of each source of a mix), spread evenly over the split",
        minimum=1,
        aliases=("max_eval_samples",),
    )
    evaluate_generate: int = setting(
        32,
        "held-out sources per evaluation for which a seq2seq model writes the target, to compare it (ROUGE-L, exact match); 0: none",
        minimum=0,
        aliases=("predict_with_generate",),
    )
    nonfinite: str = setting(
        "stop",
        "when a gradient norm is not finite (the update is never applied): stop the run, or skip the step and go on",
        choices=("stop", "skip"),
    )
