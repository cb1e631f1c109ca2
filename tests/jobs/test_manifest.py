"""The manifest: only what was written whole is believed, and nothing that was altered."""

from pathlib import Path
from typing import Any

import pytest

from pabee_fast.errors import JobError
from pabee_fast.jobs.manifest import NAME, Manifest, PartRecord
from pabee_fast.tables.read import Place


def part(index: int, **changes: Any) -> PartRecord:
    fields = {
        "index": index, "file": 0, "first_row": index * 10, "rows": 10, "end": Place(index * 100, index * 10),
        "name": f"part-{index:06d}.csv", "size": 5, "hash": "0", "tally": {"rows": 10, "failed": 0},
    }  # fmt: skip
    return PartRecord(**{**fields, **changes})


def begun(directory: Path, parts: int = 3) -> bytes:
    with Manifest(directory) as manifest:
        manifest.begin({"settings": {"policy": "patience:1"}})
        for index in range(parts):
            manifest.add_part(part(index))
    return (directory / NAME).read_bytes()


def test_what_was_recorded_is_read_back(tmp_path: Path) -> None:
    begun(tmp_path)
    with Manifest(tmp_path) as manifest:
        assert manifest.job is not None and manifest.job["settings"] == {"policy": "patience:1"}
        assert manifest.parts == {index: part(index) for index in range(3)}
        assert not manifest.finished
        manifest.finish({"size": 1, "hash": "x"})
        manifest.forget_parts([1])
    with Manifest(tmp_path) as manifest:
        assert sorted(manifest.parts) == [0, 2]
        assert not manifest.finished
        assert manifest.tables == [{"size": 1, "hash": "x"}]
        manifest.begin({"settings": {}})
    with Manifest(tmp_path) as manifest:
        assert (manifest.job or {})["settings"] == {} and not manifest.parts and not manifest.tables


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999])
def test_a_last_line_cut_short_is_dropped_and_can_be_written_again(tmp_path: Path, kept: float) -> None:
    content = begun(tmp_path)
    *_, last = content.splitlines(keepends=True)
    (tmp_path / NAME).write_bytes(content[: len(content) - len(last) + int(kept * len(last))])
    with Manifest(tmp_path) as manifest:
        assert sorted(manifest.parts) == [0, 1]
        manifest.add_part(part(2))
    assert (tmp_path / NAME).read_bytes() == content


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[0], lines[1].replace(b'"rows": 10', b'"rows": 11'), *lines[2:]],
        lambda lines: [lines[0], *lines[2:]],
        lambda lines: [lines[0], lines[2], lines[1], lines[3]],
        lambda lines: [*lines, lines[-1]],
        lambda lines: [lines[0].replace(b"patience:1", b"patience:2"), *lines[1:]],
        lambda lines: [*lines, b"{}\n"],
        lambda lines: [*lines[:3], b"\n"],
    ],
)
def test_a_manifest_that_was_altered_is_refused(tmp_path: Path, change: Any) -> None:
    lines = begun(tmp_path).splitlines(keepends=True)
    (tmp_path / NAME).write_bytes(b"".join(change(lines)))
    with pytest.raises(JobError, match="is not what was written"):
        Manifest(tmp_path)


@pytest.mark.parametrize("name", ["../part-000000.csv", "/etc/passwd", "part-000000.csv/x", "other.csv"])
def test_a_part_that_lies_elsewhere_is_refused_even_with_a_right_chain(tmp_path: Path, name: str) -> None:
    with Manifest(tmp_path) as manifest:
        manifest.begin({})
        with pytest.raises(ValueError):
            manifest.add_part(part(0, name=name))
    with pytest.raises(JobError, match="is not what was written"):
        Manifest(tmp_path)


def test_a_part_whose_size_or_hash_differs_or_that_is_a_link_is_refused_and_one_that_is_gone_is_told(
    tmp_path: Path,
) -> None:
    (tmp_path / "part-000000.csv").write_bytes(b"12345")
    import hashlib

    record = part(0, hash=hashlib.sha256(b"12345").hexdigest())
    assert record.is_there(tmp_path)
    (tmp_path / record.name).write_bytes(b"12346")
    assert record.is_there(tmp_path, thoroughly=False)
    with pytest.raises(JobError, match="its hash differs"):
        record.is_there(tmp_path)
    (tmp_path / record.name).write_bytes(b"1234")
    with pytest.raises(JobError, match="has 4 bytes, and its manifest says 5"):
        record.is_there(tmp_path, thoroughly=False)
    (tmp_path / record.name).unlink()
    assert not record.is_there(tmp_path)
    (tmp_path / "elsewhere").write_bytes(b"12345")
    (tmp_path / record.name).symlink_to("elsewhere")
    with pytest.raises(JobError, match="is no regular file"):
        record.is_there(tmp_path, thoroughly=False)


def test_a_job_has_one_coordinator(tmp_path: Path) -> None:
    begun(tmp_path)
    with Manifest(tmp_path), pytest.raises(JobError, match="another process"):
        Manifest(tmp_path)
    Manifest(tmp_path).__exit__()


def test_every_append_is_synced_before_it_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    with Manifest(tmp_path) as manifest:
        manifest.begin({})
        before = len(synced)
        manifest.add_part(part(0))
    assert synced[before:] == [(tmp_path / NAME).stat().st_size]
