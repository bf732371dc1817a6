import hashlib
import json
from pathlib import Path

import pytest

from trainer.checkpoint import manifest
from trainer.checkpoint.manifest import Entry, Manifest
from trainer.errors import StorageFailed

ENTRY = Entry(size=3, sha256="0" * 64)


def forge(folder: Path, payload: dict) -> None:
    """A manifest with a right hash of its own, whatever it says."""
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    payload = payload | {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    (folder / manifest.NAME).write_text(json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n")


def test_round_trip(tmp_path: Path) -> None:
    written = Manifest(7, {"b.json": ENTRY, "tokenizer/é.json": ENTRY})
    manifest.write(tmp_path, written)
    assert manifest.read(tmp_path) == written


def test_the_file_is_canonical_json_with_its_own_hash(tmp_path: Path) -> None:
    manifest.write(tmp_path, Manifest(7, {"b.json": ENTRY, "a.json": ENTRY}))
    raw = (tmp_path / "manifest.json").read_text()
    assert raw.startswith('{"files":{"a.json":{"sha256":"000')
    assert raw.endswith(',"step":7}\n')
    payload = json.loads(raw)
    claimed = payload.pop("sha256")
    assert claimed == hashlib.sha256((json.dumps(payload, sort_keys=True, separators=(",", ":")) + "\n").encode()).hexdigest()


def test_forge_itself_makes_what_read_accepts(tmp_path: Path) -> None:
    forge(tmp_path, {"format": 1, "step": 7, "files": {"a.json": ENTRY}})
    assert manifest.read(tmp_path) == Manifest(7, {"a.json": ENTRY})


@pytest.mark.parametrize(
    "payload",
    [
        {"format": 1, "step": 7},
        {"format": 1, "step": True, "files": {}},
        {"format": 1, "step": -1, "files": {}},
        {"format": 1, "step": "7", "files": {}},
        {"format": 1, "step": 7, "files": []},
        {"format": 1, "step": 7, "files": {}, "note": "more"},
        {"format": 2, "step": 7, "files": {}},
        {"format": 1, "step": 7, "files": {"a.json": []}},
        {"format": 1, "step": 7, "files": {"a.json": {"size": 3}}},
        {"format": 1, "step": 7, "files": {"a.json": {**ENTRY, "mode": 1}}},
        {"format": 1, "step": 7, "files": {"a.json": {**ENTRY, "size": 3.0}}},
        {"format": 1, "step": 7, "files": {"a.json": {**ENTRY, "size": True}}},
        {"format": 1, "step": 7, "files": {"a.json": {**ENTRY, "size": -1}}},
        {"format": 1, "step": 7, "files": {"a.json": {**ENTRY, "sha256": "0" * 63}}},
        {"format": 1, "step": 7, "files": {"a.json": {**ENTRY, "sha256": "g" * 64}}},
        {"format": 1, "step": 7, "files": {"a.json": {**ENTRY, "sha256": "0" * 64 + "\n"}}},
        {"format": 1, "step": 7, "files": {"a.json": {**ENTRY, "sha256": None}}},
    ],
)
def test_a_malformed_manifest_is_refused_by_name(tmp_path: Path, payload: dict) -> None:
    forge(tmp_path, payload)
    with pytest.raises(StorageFailed, match=rf"{tmp_path.name}/manifest\.json (is malformed|has format 2)"):
        manifest.read(tmp_path)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x80\x04\x95",
        b"[]\n",
        b"null\n",
        b'{"a":NaN}\n',
        b'{"a":1,"a":1}\n',
        b'{"a": 1}\n',
        b'{"a":"\\ud800"}\n',
        b'{"a":"\xff"}\n',
        b"[" * 100_000,
        b'{"a":1' + b"0" * 10_000 + b"}\n",
    ],
)
def test_what_is_not_canonical_json_is_damaged(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / manifest.NAME).write_bytes(raw)
    with pytest.raises(StorageFailed, match="is damaged"):
        manifest.read(tmp_path)


def test_a_missing_manifest_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="is missing"):
        manifest.read(tmp_path)


def test_a_huge_manifest_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / manifest.NAME).open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(StorageFailed, match="larger than"):
        manifest.read(tmp_path)


@pytest.mark.parametrize(
    "name", ["a.safetensors", "tokenizer/tokenizer.json", "spiece.model", "chat template.jinja", "a.b.txt", "config.yaml"]
)
def test_names_that_a_checkpoint_holds(name: str) -> None:
    assert manifest.name_problem(name) is None


@pytest.mark.parametrize(
    "name",
    ["", "..", "/a.json", "//a.json", "../a.json", "a/../b.json", "a/./b.json", "a//b.json", "./a.json", "a.json/", "a\n.json"],
)
def test_names_that_leave_it_or_have_another_spelling(name: str) -> None:
    assert manifest.name_problem(name) == "is not a plain relative path inside the checkpoint"


@pytest.mark.parametrize("name", ["manifest.json", "a.pt", "a.bin", "a.pkl", "a.py", "a", ".", ".metadata", ".json"])
def test_names_of_what_it_does_not_hold(name: str) -> None:
    assert "is not of a kind" in str(manifest.name_problem(name))
