"""What ranks send each other in a step: nothing but what the strategy needs, and no more of it when gradients are accumulated."""

from collections import Counter

import pytest

from trainer.testing import last_wins, prepared, run_ranks, train_here

COUNTS, PACKED = ("all_reduce", 1), ("all_reduce", 4)
"""The targets of the global batch; and the loss, the squared norm and a flag per rank in one."""


def traffic(arguments: list[str]) -> tuple[int, Counter]:
    """The number of micro-batches of the third step, and what gloo did in it: (operation, numbers in its input) -> times."""
    import torch

    from trainer.trainer import Trainer

    original, seen = Trainer.train_step, []

    def train_step(self, step, micro_batches):
        if step != 3:
            return original(self, step, micro_batches)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
            result = original(self, step, micro_batches)
        names = [event.name for event in profile.events()]
        done = Counter(
            (event.name.removeprefix("gloo:"), sum(torch.Size(shape).numel() for shape in event.input_shapes))
            for event in profile.events()
            if event.name.startswith("gloo:")
        )
        called = sum(name.startswith("c10d::") and name.endswith("_") for name in names)
        assert called == done.total(), "a collective was called that gloo did not name"
        seen.append((len(micro_batches), done))
        return result

    Trainer.train_step = train_step
    assert train_here(arguments) == 0
    return seen[0]


def traffic_of(tiny, tmp_path, *more, ranks=2):
    arguments = [*tiny, "train.steps=5", "train.log_every=5", "data.validation_fraction=0", *more, f"run.dir={tmp_path / 'run'}"]
    first, *others = run_ranks(traffic, ranks, last_wins(arguments))
    assert all(other == first for other in others)
    return first


@pytest.mark.parametrize(("micro_batch", "accumulation"), [(8, 1), (4, 2), (2, 4)])
def test_ddp_reduces_gradients_once_a_step(tiny, tmp_path, micro_batch, accumulation):
    number, done = traffic_of(tiny, tmp_path, "strategy=ddp", f"train.micro_batch={micro_batch}")
    assert number == accumulation
    gradients = {key: times for key, times in done.items() if key not in (COUNTS, PACKED)}
    ((operation, size), times) = next(iter(gradients.items()))
    assert gradients == {(operation, size): times} and (operation, times) == ("all_reduce", 1)
    assert size == num_parameters(tiny)
    assert done[COUNTS] == 1 and done[PACKED] == 1


def num_parameters(arguments):
    from trainer.model.skeleton import build_skeleton

    config, corpus = prepared(arguments)
    return build_skeleton(config.model, "causal_lm", corpus.vocabulary).num_parameters


def test_ddp_of_several_buckets_sends_each_gradient_once(tiny, tmp_path):
    _, done = traffic_of(tiny, tmp_path, "strategy=ddp", "strategy.bucket_mb=1", "model.hidden_size=256", "model.num_heads=4")
    gradients = {key: times for key, times in done.items() if key not in (COUNTS, PACKED)}
    assert sum(gradients.values()) > 2
    assert sum(size * times for (_, size), times in gradients.items()) == num_parameters(
        [*tiny, "model.hidden_size=256", "model.num_heads=4"]
    )


BLOCKS, ROOT = 2, 1


@pytest.mark.parametrize("every", [True, False], ids=["reduce every micro-batch", "reduce once"])
@pytest.mark.parametrize("reshard", [True, False], ids=["reshard", "keep"])
def test_fsdp_gathers_and_reduces_as_often_as_it_must(tiny, tmp_path, reshard, every):
    options = [f"strategy.reshard_after_forward={reshard}", f"strategy.reduce_every_micro_batch={every}"]
    number, done = traffic_of(tiny, tmp_path, "strategy=fsdp", "train.micro_batch=4", *options)
    assert number == 2
    gathers = sum(times for (operation, _), times in done.items() if operation == "all_gather")
    backward = BLOCKS if reshard else 0
    assert gathers == number * (BLOCKS + ROOT + backward)
    reduced = sum(times for key, times in done.items() if key[0] != "all_gather" and key not in (COUNTS, PACKED))
    assert reduced == (number if every else 1) * (BLOCKS + ROOT)
    assert done[COUNTS] == 1 and done[PACKED] == 1


def test_one_rank_sends_nothing(tiny, tmp_path):
    assert traffic_of(tiny, tmp_path, "strategy=single", ranks=1)[1] == Counter()
