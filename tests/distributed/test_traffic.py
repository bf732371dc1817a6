"""What ranks send each other in a step: nothing but what the strategy needs, and no more of it when gradients are accumulated.

Operations are counted by the profiler; bytes by the kernel, on the ranks' own sockets, which agree with the interface of a private network
namespace. How many there must be is in docs/zero.md: with N ranks, R = (N - 1)/N and ``a`` micro-batches, in times the model,
ddp 2 R; zero1 3 R; zero2 2 R a + R; zero3 3 R a; fsdp 3 R a. Gloo's own reduce-scatter, which zero3
uses, sends what an all-reduce sends.
"""

import json
import os
import re
import socket
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

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


@pytest.mark.parametrize(("micro_batch", "accumulation"), [(8, 1), pytest.param(4, 2, marks=pytest.mark.slow), (2, 4)])
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


@pytest.mark.parametrize(
    ("reshard", "every"),
    [(True, True), (False, False), *(pytest.param(*options, marks=pytest.mark.slow) for options in ((True, False), (False, True)))],
)
def test_fsdp_gathers_and_reduces_as_often_as_it_must(tiny, tmp_path, reshard, every):
    options = [f"strategy.reshard_after_forward={reshard}", f"strategy.reduce_every_micro_batch={every}"]
    number, done = traffic_of(tiny, tmp_path, "strategy=fsdp", "train.micro_batch=4", *options)
    assert number == 2
    gathers = sum(times for (operation, _), times in done.items() if operation == "all_gather")
    backward = BLOCKS if reshard else 0
    assert gathers == number * (BLOCKS + ROOT + backward)
    reduced = sum(times for key, times in done.items() if key[0] != "all_gather" and key not in (COUNTS, PACKED))
    assert {key[0] for key in done if key not in (COUNTS, PACKED)} == {"all_gather", "all_to_all"}  # an all-reduce would send twice as much
    assert reduced == (number if every else 1) * (BLOCKS + ROOT)
    assert done[COUNTS] == 1 and done[PACKED] == 1


def test_one_rank_sends_nothing(tiny, tmp_path):
    assert traffic_of(tiny, tmp_path, "strategy=single", ranks=1)[1] == Counter()


ROOT_FOLDER = Path(__file__).parents[2]
WIDE = ["model.hidden_size=320", "model.intermediate_size=864", "model.num_layers=2", "model.num_heads=4"]
"""2.6 million parameters, beside which counts and losses are nothing; matrices of more elements than stage 3 keeps whole."""


def bytes_sent():
    """What this process has sent by TCP and what has arrived, since its connections were made."""
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            connection = socket.socket(fileno=os.dup(int(entry.name)))
        except OSError:  # no socket
            continue
        with connection:
            if connection.type == socket.SOCK_STREAM and connection.family in (socket.AF_INET, socket.AF_INET6):
                information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
                total += struct.unpack_from("Q", information, 120)[0]  # tcpi_bytes_acked, of struct tcp_info in linux/tcp.h
    return total


def interface_bytes():
    """What has gone through the loopback interface of this process's network."""
    line = next(line for line in Path("/proc/self/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def wire(arguments):
    """On a rank: micro-batches of the third step, the bytes that this rank and that all ranks' network sent in it, and parameters."""
    import time

    import torch.distributed as dist

    from trainer.trainer import Trainer

    original, seen = Trainer.train_step, []

    def counted():
        dist.barrier()
        time.sleep(0.2)  # for the last acknowledgements
        counts = bytes_sent(), interface_bytes()
        dist.barrier()
        return counts

    def train_step(self, step, micro_batches):
        if step != 3:
            return original(self, step, micro_batches)
        before = counted()
        result = original(self, step, micro_batches)
        sent, network = (after - earlier for after, earlier in zip(counted(), before, strict=True))
        parameters = self._engine._loop._parts.model.parameters()
        seen.append((len(micro_batches), sent, network, sum(getattr(p, "ds_numel", p.numel()) for p in parameters)))
        return result

    Trainer.train_step = train_step
    assert train_here(arguments) == 0
    return seen[0]


def wide_run(tiny, tmp_path, strategy, ranks, accumulation, *more):
    batch = f"train.micro_batch={16 // ranks // accumulation}"
    common = ["train.steps=5", "data.validation_fraction=0", batch, f"strategy={strategy}", f"run.dir={tmp_path / 'run'}"]
    return last_wins([*tiny, *WIDE, *common, *more])


def formulas():
    """How many times the whole model a rank sends over gloo, by the page: (strategy, keys of ``zero_optimization``) -> formula."""
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in (ROOT_FOLDER / "docs/zero.md").read_text().splitlines()]
    return {(row[0], row[1]): row[2] for row in rows if len(row) == 5 and re.fullmatch(r"[aRN ()+*/0-9]+", row[2])}


def models_sent(formula, ranks, accumulation):
    """R is the share of the model that other ranks have, ``a`` the micro-batches per step."""
    return eval(formula, {"a": accumulation, "N": ranks, "R": (ranks - 1) / ranks})


QUICK_WIRE = {("zero3", 2, 4)}
WIRES = [(name, ranks, times) for name in ("ddp", "fsdp", "zero1", "zero2", "zero3") for ranks in (2, 4) for times in (1, 4)]


@pytest.mark.parametrize(
    ("strategy", "ranks", "accumulation"), [pytest.param(*c, marks=() if c in QUICK_WIRE else pytest.mark.slow) for c in WIRES]
)
def test_bytes_on_the_wire_are_those_of_the_page(tiny, tmp_path, strategy, ranks, accumulation):
    """An all-reduce sends 2 R models per rank, an all-gather R, and so does the reduce-scatter of ``fsdp``; gloo's own is an all-reduce."""
    formula = formulas()[strategy, ""]
    for number, sent, _, size in run_ranks(wire, ranks, wide_run(tiny, tmp_path, strategy, ranks, accumulation)):
        assert number == accumulation
        assert sent / (4 * size) == pytest.approx(models_sent(formula, ranks, accumulation), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "gradients", "parameters"), [("zero1", 1, 1), ("zero2", 4, 1), ("zero3", 4, 4)])
def test_in_bf16_parameters_are_sent_in_2_bytes_and_gradients_in_4(tiny, tmp_path, strategy, gradients, parameters):
    for _, sent, _, size in run_ranks(wire, 2, wide_run(tiny, tmp_path, strategy, 2, 4, "precision=bf16")):
        assert sent / size == pytest.approx(gradients * 2 * 4 / 2 + parameters * 2 / 2, rel=0.05)


OVERLAYS = {
    "zero2": "use_multi_rank_bucket_allreduce: false",
    "zero3": "stage3_max_live_parameters: 0, stage3_max_reuse_distance: 0",
}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", OVERLAYS)
def test_what_deepspeed_may_be_told_changes_bytes_as_the_page_says(tiny, tmp_path, strategy):
    options = [f"strategy.deepspeed={{zero_optimization: {{{OVERLAYS[strategy]}}}}}", "strategy.bucket_elements=300000"]
    formula = formulas()[strategy, OVERLAYS[strategy]]
    for _, sent, _, size in run_ranks(wire, 4, wide_run(tiny, tmp_path, strategy, 4, 2, *options)):
        assert sent / (4 * size) == pytest.approx(models_sent(formula, 4, 2), rel=0.05)


def loopback_up():
    """Brings up the loopback interface, which in a new network is down at first."""
    import fcntl

    with socket.socket() as any_socket:  # SIOCGIFFLAGS, set IFF_UP, SIOCSIFFLAGS
        request = fcntl.ioctl(any_socket, 0x8913, struct.pack("16sH14x", b"lo", 0))
        flags = struct.unpack_from("H", request, 16)[0]
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", flags | 1))


def in_a_network_of_its_own():
    """In a fresh process: counts what its ranks send, when nobody else uses the interface. See the test below."""
    loopback_up()
    print(json.dumps(run_ranks(wire, 2, sys.argv[1:])))


@pytest.mark.slow
def test_sockets_count_what_a_private_network_counts(tiny, tmp_path):
    """The kernel gives a user who may not change the network one of his own (``unshare``), with nothing on it but these ranks."""
    program = "import tests.distributed.test_traffic as traffic\ntraffic.in_a_network_of_its_own()"
    command = ["unshare", "--map-root-user", "--net", sys.executable, "-c", program, *wide_run(tiny, tmp_path, "zero2", 2, 2)]
    done = subprocess.run(command, cwd=ROOT_FOLDER, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    for _, _, network, _ in answers:
        assert sum(sent for _, sent, _, _ in answers) == pytest.approx(network, rel=0.05)
