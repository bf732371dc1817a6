"""The clock of pipelines on CUDA: it times what the stream does, not what the host does, and no step waits for it."""

from trainer.testing import run_ranks


def timed():
    import torch

    from trainer.engine.clock import STEPS, Clock

    device = torch.device("cuda", torch.cuda.current_device())
    clock = Clock(device)
    torch.cuda._sleep(1)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    for _ in range(STEPS + 8):
        with clock.step():
            with clock.span("work"):
                torch.cuda._sleep(3_000_000)
            torch.cuda._sleep(1_000_000)
    torch.cuda.set_sync_debug_mode("default")
    steps, seconds = clock.read()
    return steps, dict(seconds), clock.read()[0]


def test_work_is_what_the_stream_did():
    ((steps, seconds, again), *_) = run_ranks(timed, 1)
    assert abs(seconds["work"] / seconds["step"] - 0.75) < 0.05 and seconds["step"] > 0.01
    assert steps == 32 and again == 0
