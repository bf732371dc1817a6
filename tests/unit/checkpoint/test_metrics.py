import json
import math
import struct
from pathlib import Path

from trainer.metrics import MetricsFile


def lines(path: Path) -> list[dict]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_floats_come_back_with_the_same_bits(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    values = [0.1 + 0.2, math.pi, 5e-324, 1.7976931348623157e308, -0.0]
    for value in values:
        metrics.append({"kind": "train", "loss": value})
    metrics.sync()
    assert [struct.pack("d", line["loss"]) for line in lines(metrics.path)] == [struct.pack("d", value) for value in values]


def test_the_value_of_what_is_not_finite_stays_visible_in_valid_json(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    record = {"step": 1, "loss": math.nan, "grad_norm": math.inf, "terms": {"nll": -math.inf, "z": 1.5}}
    metrics.append(record)
    metrics.append({"step": 2, "loss": 1.0})
    metrics.close()
    first, second = lines(metrics.path)
    assert first["loss"] is first["grad_norm"] is first["terms"]["nll"] is None
    assert first["terms"]["z"] == 1.5
    assert first["nonfinite"] == {"loss": "nan", "grad_norm": "inf", "terms.nll": "-inf"}
    assert second == {"step": 2, "loss": 1.0}
    assert math.isnan(record["loss"]), "the caller's record is changed"


def test_after_cutting_back_the_file_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path)
    for step in (1, 2):
        first.append({"step": step})
    position = first.bytes
    first.sync()
    assert position == path.stat().st_size
    first.append({"step": 3})
    first.close()
    with path.open("ab") as stream:
        stream.write(b'{"step": 4, "lo')
    resumed = MetricsFile(path)
    assert resumed.cut_back(position) is None
    assert resumed.bytes == position
    resumed.append({"step": 3})
    resumed.sync()
    assert [line["step"] for line in lines(path)] == [1, 2, 3]
    assert resumed.bytes == path.stat().st_size


def test_lost_lines_are_told_and_complete_ones_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"st')
    metrics = MetricsFile(path)
    told = metrics.cut_back(1000)
    assert told is not None
    assert str(path) in told
    assert "byte 24" in told
    metrics.append({"step": 9})
    metrics.close()
    assert [line["step"] for line in lines(path)] == [1, 2, 9]


def test_a_position_inside_a_line_cuts_the_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n')
    assert MetricsFile(path).cut_back(15) is not None
    assert lines(path) == [{"step": 1}]


def test_from_the_beginning(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n')
    assert MetricsFile(path).cut_back(0) is None
    assert path.read_bytes() == b""
