"""Between log steps the host never waits for the device.

CUDA's synchronisation is watched by ``torch.cuda.set_sync_debug_mode``, which knows those that torch causes: reads, copies that wait, indexing
by masks. Offloading is left out: parameters that rest on the CPU are updated there, and that has to wait for their gradients.
"""

from itertools import product

import pytest

from tests.contracts.tasks import RECORDS, TEXT
from trainer.testing import last_wins, run_ranks, train_here

WARM_UP = 4
"""Steps in which DDP rebuilds its buckets, allocators fill and kernels are chosen; they may wait."""


def train_watched(arguments):
    """Trains with every step after the warm-up under "no synchronisation"; returns the exit code and the steps watched."""
    import torch

    from trainer.trainer import Trainer

    train_step, watched = Trainer.train_step, []

    def watched_step(self, step, micro_batches):
        # Of copies, the watch sees those that ask to wait; one from pageable memory waits without having been asked.
        assert all(tensor.is_pinned() for batch in micro_batches for tensor in (batch.labels, *batch.inputs.values()))
        if step <= WARM_UP:
            return train_step(self, step, micro_batches)
        torch.cuda.set_sync_debug_mode("error")
        try:
            values = train_step(self, step, micro_batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        watched.append(step)
        return values

    Trainer.train_step = watched_step
    return train_here(arguments), watched


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("strategy", ["single", "fsdp"])
@pytest.mark.parametrize(("name", "document"), [*product(TEXT, ["paragraph", "file"]), *((name, None) for name in RECORDS)])
def test_a_step_reads_nothing_from_the_device(task, tmp_path, name, document, strategy, precision):
    """Paragraphs pack many documents into each row; whole files leave most rows with one. Records are padded."""
    chosen = [f"+strategy={strategy}", f"precision={precision}", "train.micro_batch=4", "run.device=cuda"]
    chosen += [f"data.document={document}"] if document else []
    arguments = last_wins([*task(name), *chosen, f"run.dir={tmp_path / 'run'}"])
    assert run_ranks(train_watched, 1, arguments) == [(0, list(range(WARM_UP + 1, 21)))]


OPTIONS = {
    "sdpa": ["train.attention=sdpa"],
    "varlen, selective": ["train.attention=varlen", "train.activation_checkpointing=selective"],
    "flex": ["train.attention=flex", "model.num_heads=2"],
    "workers": ["data.workers=1"],
    "compiled": ["train.compile=true"],
    "chunked": ["train.cross_entropy=chunked"],
    "bf16 moments": ["optimizer.moments=bf16"],
    "background": ["checkpoint.background=true", "checkpoint.every=6"],
}


@pytest.mark.parametrize("option", OPTIONS)
def test_no_option_makes_a_step_wait(task, tmp_path, option):
    """With ``background`` some of the watched steps run while a checkpoint is written."""
    chosen = ["+strategy=fsdp", "precision=bf16", "train.micro_batch=4", "run.device=cuda", *OPTIONS[option]]
    arguments = last_wins([*task("llama"), *chosen, f"run.dir={tmp_path / 'run'}"])
    assert run_ranks(train_watched, 1, arguments) == [(0, list(range(WARM_UP + 1, 21)))]


def read_under_watch():
    import torch

    value = torch.ones((), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        value.item()
    except RuntimeError as error:
        return str(error)
    return None


def test_the_watch_sees_a_read():
    assert "synchroniz" in run_ranks(read_under_watch, 1)[0]
