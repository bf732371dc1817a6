"""What can end a run, each with the exit code that scripts rely on.

Every message is one or more complete sentences: what happened, where (config key, rank, file), and what to type next.
"""

from collections.abc import Sequence

DONE = 0
REFUSED = 2
FAILED = 3
STOPPED = 4
STORAGE = 8


class Failure(Exception):
    """What ends a run.

    Attributes:
        code: exit code.
        speaker: whether this rank tells the user; None: not agreed with the others.
    """

    code: int
    speaker: bool | None = None


class Refused(Failure, ValueError):
    """The configuration, the data or the surroundings cannot work; nothing has been changed. Exit code 2.

    Args:
        problems: one sentence each; all that were found, not only the first.
    """

    code = REFUSED

    def __init__(self, problems: str | Sequence[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class TrainingFailed(Failure, RuntimeError):
    """Training began and cannot go on (non-finite update, lost rank). Exit code 3."""

    code = FAILED


class StorageFailed(Failure, RuntimeError):
    """A checkpoint cannot be written, or none that exists can be trusted. Exit code 8."""

    code = STORAGE
