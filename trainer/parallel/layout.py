"""How a model is spread over the mesh, as values: what a strategy's config comes down to for the functions that wrap."""

from dataclasses import dataclass

from trainer.parallel.stages import Stages


@dataclass(frozen=True)
class Layout:
    """What is sharded, and how gradients travel.

    Attributes:
        fully_shard: shard parameters, gradients and moments over the shard axis; otherwise every rank holds all of them.
        reshard_after_forward: free gathered parameters between forward and backward.
        cpu_offload: keep sharded tensors in host memory.
        reduce_every_micro_batch: reduce-scatter gradients after each micro-batch, not once a step.
        bucket_mb: size of DDP's all-reduce buckets in MiB.
        sequence_parallel: split activations along the sequence over the tensor axis, where they are not split by heads.
        stages: of the pipeline; None: there is none.
        stays_apart: why the whole model must not be put together on one rank; None: it may be.
    """

    fully_shard: bool
    reshard_after_forward: bool
    cpu_offload: bool
    reduce_every_micro_batch: bool
    bucket_mb: int
    sequence_parallel: bool = False
    stages: Stages | None = None
    stays_apart: str | None = None
