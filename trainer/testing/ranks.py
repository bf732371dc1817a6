"""Runs a function on N gloo ranks in about a second.

Importing torch and transformers takes seconds, so one server process imports them once and every rank is forked from it, warm and clean.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import random
import signal
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

PRELOADED = [
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint",
    "torch.distributed.tensor",
    "transformers.models.llama.modeling_llama",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.bert.modeling_bert",
    "transformers.models.roberta.modeling_roberta",
    "transformers.models.t5.modeling_t5",
    "transformers.models.bart.modeling_bart",
    "transformers.generation",
    "trainer.run",
    "trainer.engine.native",
    "deepspeed",  # where it is installed
    "trainer.engine.deepspeed",
    "torch._inductor.compile_fx",  # which DeepSpeed's optimizers import, whether they compile or not
    "trainer.command_line.compose",
]


def run_ranks(function: Callable[..., Any], world_size: int, *arguments: Any, timeout: float = 120.0) -> list[Any]:
    """Calls ``function(*arguments)`` on ``world_size`` fresh processes that know each other through the usual variables.

    Args:
        function: importable by name; it, its arguments and its result are pickled.
        world_size: how many ranks.
        timeout: seconds until all are killed and their stacks shown.

    Returns:
        The results in rank order.

    Raises:
        AssertionError: a rank raised, died or took too long; with every rank's traceback.
    """
    ranks = Ranks(function, world_size, *arguments, timeout=timeout)
    try:
        return ranks.results()
    finally:
        ranks.kill()


class Ranks:
    """A group of running ranks, for tests that do things to them.

    Args:
        function: what each runs.
        world_size: how many.
        arguments: of the function.
        timeout: seconds until they end themselves, showing their stacks.
    """

    def __init__(self, function: Callable[..., Any], world_size: int, *arguments: Any, timeout: float = 120.0):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        port = _free_port()
        self._timeout = timeout
        self._ranks: list[tuple[Any, Connection]] = []
        for rank in range(world_size):
            receiver, sender = context.Pipe(duplex=False)
            variables = _launch_variables(rank, world_size, port)
            process = context.Process(target=_rank_main, args=(sender, variables, timeout, function, arguments))
            process.start()
            sender.close()
            self._ranks.append((process, receiver))

    @property
    def pids(self) -> list[int]:
        """Process ids in rank order."""
        return [process.pid for process, _ in self._ranks]

    @property
    def exit_codes(self) -> list[int | None]:
        """In rank order: None while a rank runs, -9 for one that was killed; to be asked before ``kill``."""
        return [process.exitcode for process, _ in self._ranks]

    @property
    def running(self) -> bool:
        """Whether any rank has not ended yet."""
        return any(process.is_alive() for process, _ in self._ranks)

    def send(self, number: int, rank: int | None = None) -> None:
        """Sends a signal to one rank, or to all."""
        for process, _ in self._ranks if rank is None else [self._ranks[rank]]:
            if process.is_alive():
                with suppress(ProcessLookupError):  # its server has seen it end before we have
                    os.kill(process.pid, number)

    def kill(self) -> None:
        """Kills what still runs and waits until nothing does."""
        self.send(signal.SIGKILL)
        for process, receiver in self._ranks:
            process.join()
            receiver.close()

    def results(self) -> list[Any]:
        """Waits for every rank; after the first failure the others get a moment to report theirs.

        Raises:
            AssertionError: a rank raised, died or took too long.
        """
        deadline = time.monotonic() + self._timeout
        waiting: dict[Any, int] = {receiver: number for number, (_, receiver) in enumerate(self._ranks)}
        results: list[Any] = [None] * len(self._ranks)
        failures: list[str] = []
        while waiting and (ready := wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))):
            for receiver in ready:
                number = waiting.pop(receiver)
                succeeded, value = self._receive(number)
                if succeeded:
                    results[number] = value
                else:
                    failures.append(f"--- rank {number}:\n{value}")
                    deadline = min(deadline, time.monotonic() + 2.0)
        failures += [f"--- rank {number}: no answer" for number in waiting.values()]
        assert not failures, "\n".join(failures)
        for process, _ in self._ranks:
            process.join()
        return results

    def _receive(self, number: int) -> tuple[bool, Any]:
        process, receiver = self._ranks[number]
        try:
            return receiver.recv()
        except EOFError:
            process.join()
            return False, f"died without a word (exit code {process.exitcode})"


def _rank_main(
    sender: Connection, variables: dict[str, str], timeout: float, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    import torch

    os.environ.update(variables)
    faulthandler.dump_traceback_later(timeout * 0.95, exit=True)
    torch.set_num_threads(1)
    try:
        sender.send((True, function(*arguments)))
    except SystemExit as ending:
        sender.send((False, f"left with exit code {ending.code}"))
        raise
    except BaseException:
        sender.send((False, traceback.format_exc()))
    finally:
        from trainer.distributed.process_group import stop_process_group

        stop_process_group()
        faulthandler.cancel_dump_traceback_later()


def _launch_variables(rank: int, world_size: int, port: int) -> dict[str, str]:
    values = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world_size, "MASTER_PORT": port}
    return {**{name: str(value) for name, value in values.items()}, "MASTER_ADDR": "127.0.0.1"}


def _free_port() -> int:
    """A port below those that the system gives to connections, one of which could take it before rank 0 listens."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
