"""For the tests of this project, and of strategies, objectives and models made elsewhere: warm ranks and the contract suites."""

from trainer.testing.contracts import assert_same_curve, last_wins, prepared, read_curve, train_curve, train_here
from trainer.testing.ranks import Ranks, run_ranks

__all__ = ["Ranks", "assert_same_curve", "last_wins", "prepared", "read_curve", "run_ranks", "train_curve", "train_here"]
