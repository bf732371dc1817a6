"""The environment that the installed accelerate makes of its command line: its own code, stopped where it would start processes."""

import contextlib
import os
from unittest import mock

from accelerate.commands import launch

LAUNCHERS = {
    "simple_launcher": lambda args: launch.prepare_simple_launcher_cmd_env(args)[1],
    "multi_gpu_launcher": launch.prepare_multi_gpu_env,
    "deepspeed_launcher": lambda args: launch.prepare_deepspeed_cmd_env(args)[1],
}


def environment(*arguments: str) -> tuple[dict[str, str], int]:
    """What ``accelerate launch ARGUMENTS SCRIPT`` adds to the environment, and how many processes it starts.

    The variables by which torchrun, which it calls, numbers the processes are not among them.
    """
    made: list[tuple[dict[str, str], int]] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ))
        for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_"))]:
            del os.environ[name]
        for name, prepare in LAUNCHERS.items():

            def note(args, prepare=prepare, name=name):
                made.append((prepare(args), 1 if name == "simple_launcher" else args.num_processes))

            stack.enter_context(mock.patch.object(launch, name, note))
        launch.launch_command(launch.launch_command_parser().parse_args([*arguments, "train.py"]))
    ((variables, number),) = made
    return {name: value for name, value in variables.items() if os.environ.get(name) != value}, number
