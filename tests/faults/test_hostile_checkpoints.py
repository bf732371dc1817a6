"""Checkpoints made to do harm: named, with nothing executed, followed or allocated. Each has a manifest whose hashes are right."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.checkpoint.builders import save
from tests.unit.checkpoint.test_manifest import forge
from trainer.checkpoint import manifest, verify
from trainer.errors import StorageFailed

SHARD = "shard-00000-model-00001-of-00001.safetensors"


class Payload:
    """Touches a file when unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.marker,))


def pickled(marker: Path) -> bytes:
    """A pickle that is shown to work, then disarmed again."""
    payload = pickle.dumps(Payload(marker))
    pickle.loads(payload)
    assert marker.exists()
    marker.unlink()
    return payload


def zipped(marker: Path) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(marker))
    return stream.getvalue()


def relist(checkpoint: Path, add: dict[str, dict] | None = None) -> None:
    """Makes the manifest right again for the files that are there, and lists ``add`` as well."""
    files = {
        name: {"size": (checkpoint / name).stat().st_size, "sha256": manifest.hash_file(checkpoint / name)}
        for name, kind in verify.walk(checkpoint)
        if kind == "file" and name != manifest.NAME
    }
    forge(checkpoint, {"format": 1, "step": 1, "files": files | (add or {})})


def header(tensors: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(tensors).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(dtype: str, shape: list[int], *offsets: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A good checkpoint; what each test does to it is all that is wrong."""
    folder = save(tmp_path / "checkpoints", 1)
    relist(folder)
    assert verify.problems(folder) == []
    return folder


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (pickled, "looks like a pickle"),
        (zipped, "looks like a zip archive"),
        (lambda _: b"", "header too small"),
        (lambda _: header({}, length=2**60), "header too large"),
        (lambda _: header({}, length=2**63 + 1), "header too large"),
        (lambda _: header({}, length=90_000_000), "invalid header length"),
        (lambda _: header([1]), "invalid JSON"),
        (lambda _: (200_000).to_bytes(8, "little") + b'{"a":' * 40_000, "recursion limit"),
        (lambda _: header({"a": tensor("F32", [2], 0, 8), "b": tensor("F32", [2], 4, 12)}, bytes(12)), "invalid offset for tensor"),
        (lambda _: header({"a": tensor("F32", [2], 8, 0)}, bytes(8)), "invalid offset for tensor"),
        (lambda _: header({"a": tensor("F32", [4], 0, 16)}, bytes(8)), "incomplete metadata"),
        (lambda _: header({"a": tensor("F32", [2], 0, 8)}, bytes(8) + b"payload"), "not fully covered"),
        (lambda _: header({"a": tensor("F32", [2**62, 8], 0, 0)}), "overflow"),
        (lambda _: header({"a": tensor("F32", [3], 0, 8)}, bytes(8)), ""),
        (lambda _: header({"a": tensor("\x1b[2Jobject", [2], 0, 8)}, bytes(8)), "unknown variant"),
    ],
)
def test_what_is_not_a_safetensors_file_under_its_name(checkpoint: Path, make: Callable[[Path], bytes], reason: str) -> None:
    marker = checkpoint.parent.parent / "marker"
    (checkpoint / SHARD).write_bytes(make(marker))
    relist(checkpoint)
    (problem,) = verify.problems(checkpoint)
    assert problem.startswith(f"step-1/{SHARD} is not a safetensors file")
    assert reason in problem
    assert problem.isprintable()
    assert not marker.exists()


def test_a_header_of_more_than_100_mb(checkpoint: Path) -> None:
    with (checkpoint / SHARD).open("wb") as stream:
        stream.write((100_000_001).to_bytes(8, "little"))
        stream.truncate(100_000_020)
    relist(checkpoint)
    (problem,) = verify.problems(checkpoint)
    assert SHARD in problem
    assert "header too large" in problem


@pytest.mark.parametrize(
    "name", ["../outside.json", "a/../../outside.json", "/dev/zero", "//dev/zero.json", ".metadata", "code.py", "model.pt"]
)
def test_a_path_that_a_checkpoint_does_not_hold(checkpoint: Path, name: str) -> None:
    (checkpoint.parent / "outside.json").write_text("{}")
    relist(checkpoint, {name: {"size": 2, "sha256": manifest.hash_file(checkpoint.parent / "outside.json")}})
    (problem,) = verify.problems(checkpoint)
    assert problem.startswith(f"step-1/manifest.json lists {name!r}, which ")


def test_a_link_to_a_file(checkpoint: Path) -> None:
    outside = checkpoint.parent / "outside.json"
    (checkpoint / "state.json").rename(outside)
    (checkpoint / "state.json").symlink_to(outside)
    assert verify.problems(checkpoint) == ["step-1/state.json is not a regular file but a symbolic link."]


def test_a_link_to_a_folder(checkpoint: Path) -> None:
    outside = checkpoint.parent / "outside"
    (checkpoint / "tokenizer").rename(outside)
    (checkpoint / "tokenizer").symlink_to(outside)
    found = verify.problems(checkpoint)
    assert any(problem.startswith("step-1/tokenizer is a symbolic link") for problem in found)
    assert "step-1/tokenizer/tokenizer.json is missing." in found


def test_a_checkpoint_that_is_itself_a_link(checkpoint: Path) -> None:
    link = checkpoint.parent / "step-2"
    link.symlink_to(checkpoint)
    assert verify.problems(link) == [f"{link} is a symbolic link."]


def test_a_pipe_is_not_waited_for_nor_a_device_read(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    os.mkfifo(checkpoint / "config.json")
    relist(checkpoint, {"config.json": {"size": 0, "sha256": "0" * 64}})
    assert verify.problems(checkpoint) == ["step-1/config.json is not a regular file but a device or pipe."]


def test_a_manifest_that_is_a_link_is_not_followed(checkpoint: Path) -> None:
    outside = checkpoint.parent / "outside.json"
    (checkpoint / manifest.NAME).rename(outside)
    (checkpoint / manifest.NAME).symlink_to(outside)
    (problem,) = verify.problems(checkpoint)
    assert problem.startswith("step-1/manifest.json cannot be read: Too many levels of symbolic links")


@pytest.mark.parametrize("make", [lambda path: os.mkfifo(path), lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
def test_a_manifest_that_is_no_file(checkpoint: Path, make: Callable[[Path], object]) -> None:
    (checkpoint / manifest.NAME).unlink()
    make(checkpoint / manifest.NAME)
    (problem,) = verify.problems(checkpoint)
    assert problem.startswith("step-1/manifest.json cannot be read")


@pytest.mark.parametrize("name", [".metadata", "extra.safetensors", "tokenizer/hook.py", "evil\x1b[2J\n.json"])
def test_a_foreign_file(checkpoint: Path, name: str) -> None:
    marker = checkpoint.parent.parent / "marker"
    (checkpoint / name).write_bytes(pickled(marker))
    (problem,) = verify.problems(checkpoint)
    assert "is a file that the manifest does not list" in problem
    assert problem.startswith("step-1/" + "".join(letter if letter.isprintable() else "?" for letter in name))
    assert not marker.exists()


def test_the_manifest_as_a_pickle(checkpoint: Path) -> None:
    marker = checkpoint.parent.parent / "marker"
    (checkpoint / manifest.NAME).write_bytes(pickled(marker))
    (problem,) = verify.problems(checkpoint)
    assert problem.startswith("step-1/manifest.json is damaged")
    assert not marker.exists()


def test_a_claimed_size_is_compared_and_never_allocated(checkpoint: Path) -> None:
    relist(checkpoint, {SHARD: {"size": 2**62, "sha256": "0" * 64}})
    (problem,) = verify.problems(checkpoint)
    assert SHARD in problem
    assert f"the manifest says {2**62}" in problem


def test_with_nothing_but_a_hostile_checkpoint_nothing_starts(checkpoint: Path) -> None:
    (checkpoint / SHARD).write_bytes(b"PK\x03\x04")
    relist(checkpoint)
    with pytest.raises(StorageFailed, match=f"Nothing was started(?s:.*){SHARD} is not a safetensors file"):
        verify.choose(checkpoint.parent, verify.problems)
