"""What a run prints: from one rank only, nothing broken that a user may want to copy, and a bar only where there is a terminal."""

import atexit
import fcntl
import os
import re
import struct
import termios
import threading
import time

import pytest

from tests.faults.door import Guests
from trainer.testing import prepared


@pytest.fixture
def far_away(tmp_path, tiny):
    """A run directory whose path is longer than a line, and a prepared corpus: whichever rank is first prepares, and says so."""
    prepared(tiny)
    return tmp_path / ("a-name-that-is-as-long-as-people-make-them-" * 3) / "run"


def on_a_terminal(rank, folder, columns):
    """Sabotage of a friendly kind: rank 0 prints to a terminal, of which ``folder/screen`` keeps every byte."""
    if rank:
        return
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    os.environ["TERM"] = "xterm"
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)
    os.dup2(slave, 1)
    os.dup2(slave, 2)
    screen = (folder / "screen").open("wb", buffering=0)

    def keep():
        while data := os.read(master, 65536):
            screen.write(data)

    threading.Thread(target=keep, daemon=True).start()
    atexit.register(time.sleep, 0.3)


@pytest.mark.parametrize("quiet", [True, False])
def test_piped_output_is_lines_from_rank_0(tiny, far_away, tmp_path, quiet):
    guests = Guests(tmp_path / "guests", far_away, 2, [*tiny, "strategy=ddp", f"run.quiet={quiet}", "checkpoint.every=10"])
    assert guests.wait().codes == [0, 0]
    assert (tmp_path / "guests" / "terminal-1").read_text() == ""
    lines = (tmp_path / "guests" / "terminal-0").read_text().splitlines()
    assert all(line.isprintable() for line in lines), "no escapes, no carriage returns"
    assert f"checkpoint {far_away / 'checkpoints' / 'step-10'}" in lines
    assert sum(line.startswith("step 20/20  loss ") for line in lines) == 1
    assert f"generate    isotrain generate checkpoint={far_away}" in lines
    assert f"export      isotrain export checkpoint={far_away} to={far_away / 'model'}" in lines


@pytest.mark.parametrize("columns", [100, 60])
def test_on_a_terminal_there_is_one_bar(tiny, far_away, tmp_path, columns):
    arguments = [*tiny, "strategy=ddp", "run.quiet=false", "checkpoint.every=10"]
    guests = Guests(tmp_path / "guests", far_away, 2, arguments, on_a_terminal, tmp_path, columns)
    assert guests.wait().codes == [0, 0]
    assert guests.terminal() == ""
    screen = (tmp_path / "screen").read_bytes().decode()
    assert screen.count("\x1b[?25l") == screen.count("\x1b[?25h") == 1, "the cursor is hidden once, and shown again"
    assert "\x1b[1A" not in screen, "the bar never needs a second line"
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen)
    assert f"\ncheckpoint {far_away / 'checkpoints' / 'step-10'}\r\n" in re.sub(r"\r(?!\n)", "\n", text)
    assert ("━" in text) == (columns == 100), "a narrow terminal keeps its numbers, and has no room for a bar"
    assert "…" not in text.replace("loss …", "")
    assert "20/20" in text and "step 20/20  loss" not in text
    assert text.endswith("\r\n")
