"""Contract State, every move: 10 steps under one strategy, a checkpoint, 10 more under another, or on other ranks. docs/moves.md is its table."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.contracts.test_state import engine_state
from trainer.state.storage import read_tensors
from trainer.testing import assert_same_curve, last_wins, run_ranks, train_curve

PAGE = Path(__file__).parents[2] / "docs" / "moves.md"
STRATEGIES = ("single", "ddp", "fsdp", "zero1", "zero2", "zero3", "tensor", "pipeline", "3d")
RANKS = {"single": 1, "3d": 4}
"""Where it is not 2."""
SPREAD = ("ddp", "fsdp", "zero2", "zero3")
MOVES = [
    *(((source, RANKS.get(source, 2)), (to, RANKS.get(to, 2))) for source in STRATEGIES for to in STRATEGIES if source != to),
    *(((source, before), (to, after)) for source in SPREAD for to in SPREAD for before, after in ((2, 4), (4, 2))),
]
QUICK = [(("zero3", 4), ("ddp", 2))]


@pytest.fixture(scope="module")
def half(tiny, tmp_path_factory):
    """The run directory after 10 steps of a layout."""
    folders = {}

    def run(strategy, ranks):
        if (strategy, ranks) not in folders:
            folder = folders[strategy, ranks] = tmp_path_factory.mktemp("half") / "run"
            train_curve([*tiny, f"strategy={strategy}", "train.stop_after=10", "train.micro_batch=4"], folder, ranks)
        return folders[strategy, ranks]

    return run


@pytest.fixture(scope="module")
def stayed(tiny, tmp_path_factory):
    """The curve of a layout that nobody interrupted."""
    curves = {}

    def run(strategy, ranks):
        if (strategy, ranks) not in curves:
            arguments = [*tiny, f"strategy={strategy}", "train.micro_batch=4"]
            curves[strategy, ranks] = train_curve(arguments, tmp_path_factory.mktemp("stayed"), ranks)
        return curves[strategy, ranks]

    return run


@pytest.fixture(scope="module")
def found():
    """The largest relative difference of a loss after each move; writes the page when all have been made."""
    differences = {}
    yield differences
    if len(differences) == len(MOVES):
        PAGE.write_text(page(differences))


def page(differences):
    """The table as docs/moves.md shows it, differences rounded up to a power of ten."""
    layouts = sorted({layout for move in MOVES for layout in move}, key=lambda layout: (layout[1], STRATEGIES.index(layout[0])))
    lines = [
        "# Moves",
        "",
        "Ten steps under the strategy of the row, a checkpoint, ten more under that of the column (`tests/contracts/test_moves.py`, a small Llama, fp32, clipping",
        "on). Parameters, moments and step counts after loading are bitwise what was saved, and the samples are the same. A cell is the power of ten that",
        "the largest relative difference of a loss from the column's own uninterrupted run stays below; 0 is bitwise. `make test-all` makes every move and writes this page.",
        "",
        "| from \\ to | " + " | ".join(f"{name} {ranks}" for name, ranks in layouts) + " |",
        "|---" * (len(layouts) + 1) + "|",
    ]
    for source in layouts:
        cells = [told(differences[source, to]) if (source, to) in differences else "" for to in layouts]
        lines.append(f"| {source[0]} {source[1]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def told(difference):
    return f"1e{int(f'{difference:e}'.partition('e')[2]) + 1:+03d}" if difference else "0"


@pytest.mark.parametrize(
    ("source", "to"),
    [pytest.param(*move, id="-".join(f"{s}@{n}" for s, n in move), marks=() if move in QUICK else pytest.mark.slow) for move in MOVES],
)
def test_a_move_loses_nothing(tiny, tmp_path, half, stayed, found, source, to):
    shutil.copytree(half(*source), tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "step-10"
    arguments = [*tiny, f"strategy={to[0]}", "train.micro_batch=4"]
    saved = read_tensors(folder, "")
    parts = run_ranks(engine_state, to[1], last_wins(arguments), folder)
    assert set().union(*parts) == saved.keys() if to[0] in ("pipeline", "3d") else all(part.keys() == saved.keys() for part in parts)
    assert all(torch.equal(torch.from_numpy(value), saved[name]) for seen in parts for name, value in seen.items())
    assert {tensor.item() for name, tensor in saved.items() if name.endswith(".step")} == {10}
    moved, alone = train_curve(arguments, tmp_path / "run", to[1])[10:], stayed(*to)[10:]
    assert [line["step"] for line in moved] == list(range(11, 21))
    assert_same_curve(moved, alone, loss=1e-5, grad_norm=1e-4)
    found[source, to] = max(abs(one["loss"] - other["loss"]) / other["loss"] for one, other in zip(moved, alone, strict=True))
    assert found[source, to] <= 10 * max(shown(source, to), 1e-7), "docs/moves.md says otherwise"


def shown(source, to):
    """What the page says of a move."""
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.read_text().splitlines() if line.startswith("|")]
    row = next(row for row in table if row[0] == f"{source[0]} {source[1]}")
    return float(row[table[0].index(f"{to[0]} {to[1]}")])


def test_the_page_has_every_move_within_the_promise():
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if re.match(r"\| \w+ \d", line)]
    header = next(line for line in PAGE.read_text().splitlines() if line.startswith("| from")).strip("| ").split(" | ")[1:]
    cells = [cell.strip() for row in rows for cell in row[1:]]
    assert [row[0] for row in rows] == header
    assert sum(bool(cell) for cell in cells) == len(MOVES)
    assert all(float(cell) <= 1e-5 for cell in cells if cell)
