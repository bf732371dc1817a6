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
