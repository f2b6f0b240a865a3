"""The document root: which files it opens, what makes two copies the same object, and that it stays in its folder."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.ftp import paths
from dataplane.ftp.tree import Tree
from dataplane.objects import LIMIT_SEGMENTS, DocumentRoot, ObjectMissing, ObjectUnavailable
from state.datablock import DataBlock, decode_header
from state.sections import ObjectRef
from tests.unit.builders import document_root, header

CONTENT = b"moving pictures" * 100


@pytest.fixture
def root(tmp_path: Path) -> Iterator[DocumentRoot]:
    folder = tmp_path / "www"
    folder.mkdir()
    with document_root(folder, film=CONTENT) as made:
        yield made


def rewrite(root: DocumentRoot, content: bytes, second: int = 2 * 10**9) -> None:
    path = Path(root.root) / "film.bin"
    path.write_bytes(content)
    os.utime(path, ns=(second * 10**9, second * 10**9))


# --- opening ---
def test_a_file_is_opened_by_its_path_below_the_root(root: DocumentRoot) -> None:
    opened = root.open("/film.bin")
    assert opened.ref == ObjectRef("/film.bin", len(CONTENT), 10**18, b"")
    assert os.pread(opened.fd, 10, 6) == CONTENT[6:16]


def test_when_no_file_can_be_opened_any_more_the_object_is_not_missing(root: DocumentRoot) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")), hard))
    held: list[int] = []
    try:
        with pytest.raises(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(ObjectUnavailable, match="Too many open files"):
            root.open("/film.bin")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in held:
            os.close(descriptor)
    root.release(root.open("/film.bin"))


def test_an_open_object_is_shared_and_closed_after_its_last_user(root: DocumentRoot) -> None:
    first, second = root.open("/film.bin"), root.open("/film.bin")
    assert first is second
    root.release(first)
    assert os.fstat(first.fd).st_size == len(CONTENT)
    fd = first.fd
    root.release(second)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert root.open("/film.bin") is not first


def test_a_copy_of_what_is_open_is_shared_while_it_is_what_the_disk_has(root: DocumentRoot) -> None:
    first = root.open("/film.bin")
    again = root.open_copy(first.ref)
    assert again is first
    assert root.same(again, first.ref)
    os.rename(Path(root.root) / "film.bin", Path(root.root) / "moved.bin")
    with pytest.raises(ObjectMissing):
        root.open_copy(first.ref)
    root.release(again)
    assert os.fstat(first.fd).st_size == len(CONTENT)
    root.release(first)
    with pytest.raises(ObjectMissing):
        root.open_copy(first.ref)


def test_a_copy_that_is_not_what_is_open_is_looked_for_on_the_disk(root: DocumentRoot) -> None:
    old = root.open("/film.bin")
    rewrite(root, CONTENT[::-1])
    new = root.open("/film.bin")
    assert root.open_copy(new.ref) is new
    assert root.open_copy(old.ref) is new, "what the disk has; whether it is the same, `same` decides"
    assert not root.same(new, old.ref)


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in ("missing", "file"):
        with pytest.raises(ObjectMissing, match=path):
            DocumentRoot(str(tmp_path / path))


@pytest.mark.parametrize(
    "identifier",
    [
        "/../secret",
        "/../www-other/secret",
        "/a/../../secret",
        "../secret",
        "/..",
        "//../secret",
        "/link",
        "/folder-link/secret",
        "/",
        "",
        "/.",
    ],
)
def test_nothing_outside_the_root_is_opened(root: DocumentRoot, identifier: str) -> None:
    outside = Path(root.root).parent
    (outside / "secret").write_bytes(b"secret")
    (outside / "www-other").mkdir()
    (outside / "www-other" / "secret").write_bytes(b"secret")
    (Path(root.root) / "link").symlink_to(outside / "secret")
    (Path(root.root) / "folder-link").symlink_to(outside)
    with pytest.raises(ObjectMissing):
        root.open(identifier)


@pytest.mark.parametrize(
    "identifier", ["/film.bin/", "/film.bin\0", "/a\0b", "\0", "/" + "x" * 5000, "/" + "a/" * 3000]
)
def test_an_identifier_that_no_file_can_have_is_missing(root: DocumentRoot, identifier: str) -> None:
    """It may come from another server's checkpoint."""
    with pytest.raises(ObjectMissing):
        root.open(identifier)


@pytest.mark.parametrize("identifier", ["/a" * 2000, "/a" * 100, "/folder" * 200, "/self" * 500])
def test_a_path_costs_few_looks_at_the_disk(
    root: DocumentRoot, identifier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client may ask for many of them at once, and the event loop looks."""
    (Path(root.root) / "folder").mkdir()
    (Path(root.root) / "self").symlink_to(".")
    tree, looked, lstat = Tree(root.root), [], os.lstat
    monkeypatch.setattr(os, "lstat", lambda path, **given: looked.append(path) or lstat(path, **given))
    with pytest.raises(ObjectMissing):
        root.open(identifier)
    assert tree.find(identifier) is None
    assert len(looked) <= 2 * (root.root.count("/") + 2)
    if identifier.count("/") > LIMIT_SEGMENTS:
        assert tree.real(identifier) is None and paths.resolve("/", identifier) is None


def test_whatever_is_opened_has_an_identifier_that_a_checkpoint_can_carry(root: DocumentRoot) -> None:
    """A client chooses how to spell a path."""
    try:
        identifier = root.open("/" + "./" * 3000 + "film.bin").ref.identifier
    except ObjectMissing:
        return
    assert decode_header(DataBlock(header(object=identifier)).encode()).object == identifier


def test_what_is_no_file_is_missing(root: DocumentRoot) -> None:
    (Path(root.root) / "folder").mkdir()
    os.mkfifo(Path(root.root) / "pipe")
    for identifier in ("/folder", "/pipe", "/missing", "/film.bin/below"):
        with pytest.raises(ObjectMissing, match=identifier):
            root.open(identifier)


def test_a_link_within_the_root_is_followed(root: DocumentRoot) -> None:
    (Path(root.root) / "link").symlink_to("film.bin")
    assert root.open("/link").ref.size == len(CONTENT)


# --- identity ---
def test_a_file_that_changed_is_another_object(root: DocumentRoot) -> None:
    old = root.open("/film.bin")
    rewrite(root, CONTENT[::-1])
    new = root.open("/film.bin")
    assert new is not old
    assert new.ref.mtime_ns == 2 * 10**18
    assert not root.same(old, old.ref), "the bytes behind the old one are not what they were"
    assert root.same(new, new.ref)


def test_a_file_that_changed_back_to_its_size_and_time_is_another_object(root: DocumentRoot) -> None:
    old = root.open("/film.bin")
    rewrite(root, CONTENT[::-1], second=10**9)
    new = root.open("/film.bin")
    assert new.ref == old.ref, "size and modification time alone do not tell"
    assert new is not old
    assert not root.same(old, old.ref)


def test_a_file_that_was_replaced_is_another_object(root: DocumentRoot) -> None:
    old = root.open("/film.bin")
    other = Path(root.root) / "new"
    other.write_bytes(CONTENT[::-1])
    other.rename(Path(root.root) / "film.bin")
    new = root.open("/film.bin")
    assert os.pread(old.fd, 15, 0) == CONTENT[:15]
    assert os.pread(new.fd, 15, 0) == CONTENT[::-1][:15]


def test_without_digests_size_and_time_decide(root: DocumentRoot) -> None:
    mine = root.open("/film.bin")
    assert root.same(mine, ObjectRef("/film.bin", len(CONTENT), 10**18, b""))
    assert root.same(mine, ObjectRef("/film.bin", len(CONTENT), 10**18, b"d" * 32))
    assert not root.same(mine, ObjectRef("/film.bin", len(CONTENT), 10**18 + 1, b""))
    assert not root.same(mine, ObjectRef("/film.bin", len(CONTENT) + 1, 10**18, b""))


# --- digests ---
def test_indexing_learns_the_digest_of_every_file(root: DocumentRoot) -> None:
    (Path(root.root) / "folder").mkdir()
    (Path(root.root) / "folder" / "empty").write_bytes(b"")
    (Path(root.root) / "broken").symlink_to("nowhere")
    os.mkfifo(Path(root.root) / "pipe")
    assert asyncio.run(root.index()) == 2
    assert root.open("/film.bin").ref.digest == hashlib.sha256(CONTENT).digest()
    assert root.open("/folder/empty").ref.digest == hashlib.sha256(b"").digest()


def test_indexing_stops_at_its_limit(root: DocumentRoot) -> None:
    (Path(root.root) / "other").write_bytes(b"x")
    assert asyncio.run(root.index(limit=1)) == 1


def test_with_digests_the_content_decides_and_the_time_does_not(root: DocumentRoot) -> None:
    asyncio.run(root.index())
    mine = root.open("/film.bin")
    assert root.same(mine, ObjectRef("/film.bin", len(CONTENT), 5, hashlib.sha256(CONTENT).digest()))
    assert not root.same(mine, ObjectRef("/film.bin", len(CONTENT), 10**18, hashlib.sha256(b"other").digest()))
    assert not root.same(mine, ObjectRef("/film.bin", len(CONTENT) + 1, 10**18, hashlib.sha256(CONTENT).digest()))


def test_the_digest_of_a_new_file_is_told_when_it_is_known(root: DocumentRoot) -> None:
    async def learn() -> list[tuple[ObjectRef, ObjectRef]]:
        loop = asyncio.get_running_loop()
        told: asyncio.Future[tuple[ObjectRef, ObjectRef]] = loop.create_future()
        again: asyncio.Future[tuple[ObjectRef, ObjectRef]] = loop.create_future()
        opened = root.open("/film.bin")
        opened.digest_known.append(lambda old, new: told.set_result((old, new)))
        root.open("/film.bin").digest_known.append(lambda old, new: again.set_result((old, new)))
        return list(await asyncio.wait_for(asyncio.gather(told, again), 5))

    told, again = asyncio.run(learn())
    unknown = ObjectRef("/film.bin", len(CONTENT), 10**18, b"")
    known = ObjectRef("/film.bin", len(CONTENT), 10**18, hashlib.sha256(CONTENT).digest())
    assert told == again == (unknown, known)
    assert root.open("/film.bin").ref == known


def test_a_file_that_changed_since_it_was_indexed_has_its_own_digest(root: DocumentRoot) -> None:
    asyncio.run(root.index())
    old = root.open("/film.bin")
    rewrite(root, CONTENT[::-1], second=10**9)
    assert root.open("/film.bin").ref.digest == b""
    assert not root.same(old, old.ref)
