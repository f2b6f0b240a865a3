"""An upload that goes on in a file: only in one that is as it was, or longer where the client says from where."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataplane.ftp.upload import Upload


def nothing(*_: object) -> None:
    return


@pytest.mark.parametrize(
    ("content", "offset", "exactly"),
    [(b"12345", 10, False), (b"12345", 10, True), (b"1234567890", 5, True), (None, 5, False), (None, 5, True)],
)
def test_a_file_that_is_not_what_it_was_is_left_alone(
    tmp_path: Path, content: bytes | None, offset: int, exactly: bool
) -> None:
    """Another has written to it since, or another server has another copy: no gap, and nothing is lost."""
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(OSError):
        Upload(str(file), offset, nothing, nothing, exactly=exactly)
    assert (file.read_bytes() if file.exists() else None) == content


@pytest.mark.parametrize(("offset", "exactly", "left"), [(5, True, b"12345"), (3, False, b"123"), (5, False, b"12345")])
def test_what_comes_before_the_offset_is_kept(tmp_path: Path, offset: int, exactly: bool, left: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    Upload(str(file), offset, nothing, nothing, exactly=exactly).abandon()
    assert file.read_bytes() == left
