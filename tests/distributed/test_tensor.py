"""What tensor parallelism keeps on a rank and sends in a step, against the formulas of docs/tensor.md."""

import pytest
import torch

from tests.contracts.engines import build_engine, micro_batches
from tests.contracts.tasks import layout
from tests.distributed.test_traffic import COUNTS, traffic_of
from trainer.testing import last_wins, run_ranks

WHOLE = {
    "llama": ("norm.weight",),
    "bert": ("LayerNorm", "position_embeddings", "token_type_embeddings", "output.dense.bias", "predictions.transform"),
    "t5": ("layer_norm.weight",),
    "gpt2": ("ln_", "wpe", "c_proj.bias"),
}
"""Parts of the names of parameters that every rank of the tensor axis has whole; all others are split."""


def kept(arguments, whole):
    """On a rank: bytes behind parameters, moments and gradients; and of all parameters, how many numbers are split and how many not."""
    from trainer.distributed.sharding import local_part

    job, engine = build_engine(arguments)
    sizes = {name: parameter.numel() for name, parameter in engine._named}
    engine.forward_backward(1, micro_batches(job, engine, 1), {"targets": torch.tensor(100)})
    held = [tensor for state in engine._parts.optimizer.state.values() for name, tensor in state.items() if name != "step"]
    held += [tensor for _, parameter in engine._named for tensor in (parameter.detach(), parameter.grad)]
    storages = [local_part(tensor).untyped_storage() for tensor in held]
    measured = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    replicated = sum(size for name, size in sizes.items() if any(part in name for part in whole))
    return measured, sum(sizes.values()) - replicated, replicated


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "strategy", "ranks", "split", "spread"),
    [
        ("llama", "tensor", 1, 1, 1),
        *((family, "tensor", ranks, ranks, 1) for family in WHOLE for ranks in (2, 4)),
        ("llama", "tensor x fsdp", 4, 2, 2),
        ("llama", "tensor x ddp", 4, 2, 1),
    ],
)
def test_a_rank_keeps_its_part_of_what_is_split_and_all_of_the_rest(task, family, strategy, ranks, split, spread):
    """Four numbers of 4 bytes per parameter: itself, two moments and its gradient."""
    positions = ["model.max_positions=32"] if family == "gpt2" else []  # else they are most of a tiny model
    arguments = last_wins([*task(family), *layout(strategy), "train.micro_batch=4", *positions])
    for measured, sliced, replicated in run_ranks(kept, ranks, arguments, WHOLE[family]):
        assert replicated < sliced / 4, "else the formula proves nothing"
        assert measured == pytest.approx(4 * 4 * (sliced / split + replicated) / spread, rel=0.05)


ENDS = 2
"""All-reduces of the hidden states outside of layers: behind the embedding, and the gradient in front of the head."""


@pytest.mark.slow
@pytest.mark.parametrize("layers", [2, 3])
def test_a_layer_sends_its_hidden_states_four_times(tiny, tmp_path, layers):
    """Twice forward, behind attention and feed-forward, and twice backward, in front of them (Shoeybi et al., 2019, section 3)."""
    number, done = traffic_of(tiny, tmp_path, "strategy=tensor", "train.micro_batch=4", f"model.num_layers={layers}")
    tokens, hidden = 4 * 32, 32
    assert number == 4
    assert done.pop(("all_reduce", tokens * hidden)) == number * (4 * layers + ENDS)
    assert done.pop(("all_reduce", tokens)) == done.pop(("all_reduce", 2 * tokens)) == number, "of the likelihood: the largest, and sums"
    assert COUNTS not in done, "one data rank has counted all"
    assert done.total() == 1, "and the step's packed terms"
