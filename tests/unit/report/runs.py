"""Run directories as training leaves them, written by hand, and what a browser would find in a report."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

from trainer.metrics import MetricsFile

VOID = {"meta", "input", "br"}


def step(number: int, loss: float = 2.5, **more) -> dict:
    """A training line."""
    line = {"kind": "train", "step": number, "loss": loss, "grad_norm": 1.0, "lr": 1e-3, "num_targets": 100, "samples": f"{number:016x}"}
    line |= {"tokens_per_second": 50.0, "slots_per_second": 80.0, "mfu": None, "mfu_causal": None, "peak_memory_bytes": 3 * 2**20}
    return line | {"applied": True, "seconds": {"data": 0.5, "forward_backward": 1.0, "optimizer": 0.25}, "bubble": None} | more


def write_run(folder: Path, lines: list[dict], code: int | None = 0, sentence: str = "", sessions: list[dict] = (), **config) -> Path:
    """A run directory."""
    folder.mkdir(parents=True)
    metrics = MetricsFile(folder / "metrics.jsonl")
    for line in lines:
        metrics.append(line)
    metrics.close()
    keys = "".join(f"{key}: {json.dumps(value)}\n" for key, value in config.items())
    (folder / "config.yaml").write_text(f"defaults:\n- /schema/model/llama@model\n- _self_\n{keys}")
    (folder / "passport.json").write_text(json.dumps({"device": "cpu", "world_size": 2, "strategy": {"name": "fsdp"}, "parameters": 1000}))
    (folder / "sessions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in sessions))
    if code is not None:
        (folder / "exit.json").write_text(json.dumps({"code": code, "sentence": sentence}))
    return folder


class Page(HTMLParser):
    """A page as a tree of what was asked about: its texts, its tags with attributes, and whether each tag is closed.

    Attributes:
        tags: (name, attributes, the title of the chart around it) in order.
        texts: what is read, by the tag around it.
    """

    def __init__(self, html: bytes):
        super().__init__()
        self.tags: list[tuple[str, dict, str]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self._chart = ""
        self.feed(html.decode())
        self.close()
        assert not self._open, f"{self._open} are not closed"

    def handle_starttag(self, tag, attrs):
        if tag == "figure":
            self._chart = "?"
        self.tags.append((tag, dict(attrs), self._chart))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open and self._open.pop() == tag, f"</{tag}> closes another tag"
        if tag == "figure":
            self._chart = ""

    def handle_data(self, data):
        if self._chart == "?" and self._open[-2:] == ["figcaption", "b"]:
            self._chart = data
            self.tags = [(tag, attrs, data if chart == "?" else chart) for tag, attrs, chart in self.tags]
        self.texts.append((self._open[-1] if self._open else "", data))

    @property
    def text(self) -> str:
        """All that is read, without style and script."""
        return " ".join(data for tag, data in self.texts if tag not in ("style", "script"))

    @property
    def charts(self) -> list[str]:
        """Titles."""
        return list(dict.fromkeys(chart for _, _, chart in self.tags if chart))

    def paths(self, chart: str, kind: str) -> list[str]:
        """The shapes of a class in a chart."""
        return [
            attrs["d"] for tag, attrs, where in self.tags if tag == "path" and where == chart and kind in attrs.get("class", "").split()
        ]

    def data(self) -> dict:
        """What the pointer reads."""
        return json.loads(next(data for tag, data in self.texts if tag == "script" and data.startswith("{")))


def values_drawn(html: bytes, chart: str, which: int = 0) -> list[tuple[float, float]]:
    """(step, value) of each point of a line, worked out from the picture and the labels of its axes alone."""
    (figure,) = [part for part in re.findall(r"<figure.*?</figure>", html.decode(), re.DOTALL) if f"<b>{chart}</b>" in part]
    places = {}
    for axis, side in (("x", "left"), ("y", "top")):
        labels = re.search(rf'<div class="{axis}">(.*?)</div>', figure)[1]
        found = [(float(place) / 100, _value(text)) for place, text in re.findall(rf'style="{side}:([\d.]+)%"[^>]*>([^<]*)<', labels)]
        (at, value), (end, other) = found[0], found[-1]
        places[axis] = (at, value, (other - value) / (end - at))
    line = re.findall(r'<path d="([^"]*)" class="line[^"]*"', figure)[which]
    points = [tuple(map(float, point.split())) for point in re.split("[ML]", line) if point]
    (x0, step0, per_x), (y0, value0, per_y) = places["x"], places["y"]
    return [(step0 + (x / 1000 - x0) * per_x, value0 + (y / 1000 - y0) * per_y) for x, y in points]


def _value(text: str) -> float:
    digits, _, unit = text.replace(",", "").partition(" ")
    return float(digits) * {"": 1, "k": 1e3, "M": 1e6, "MiB": 2**20, "KiB": 2**10, "%": 0.01, "s": 1, "ms": 1e-3}[unit]
