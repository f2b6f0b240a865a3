"""Objects whose bytes are computed: what goes out over a real socket, and what makes two of them the same."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import msgspec
import pytest

from dataplane import Application, DocumentRoot, GeneratedObject, LocalError, ObjectMissing, ObjectRef, Stream
from dataplane.objects import key_of
from dataplane.sequence_map import MapError, SequenceMap
from dataplane.stream import ByteStream
from state.sections import LIMIT_PARAMETERS, STREAM, Extent, StreamSection
from tests.unit.builders import ISS, document_root, proof, wire
from tests.unit.live import Live, live
from tests.unit.test_live_connection import Plain

CONTENT = bytes(range(256)) * 400


class Doubled(GeneratedObject):
    """Every byte of the file, twice, each time with the parameter added."""

    def __init__(self, root: DocumentRoot, add: int = 1, path: str = "/film.bin") -> None:
        file = root.open(path)
        super().__init__(file, 2 * file.ref.size, bytes([add]))
        self.reads = 0

    def read(self, offset: int, length: int) -> bytes:
        self.reads += 1
        first, last = offset // 2, (offset + length + 1) // 2
        data = os.pread(self.file.fd, last - first, first)
        made = bytes((value + self.parameters[0]) % 256 for value in data for _ in range(2))
        return made[offset % 2 : offset % 2 + length]


def doubled(add: int = 1) -> bytes:
    return bytes((value + add) % 256 for value in CONTENT for _ in range(2))


# --- sending ---
def test_computed_bytes_go_out_in_any_run(tmp_path: Path) -> None:
    def on_input(stream: Stream, data: bytes) -> None:
        stream.write(b"<")
        stream.send_object(Doubled(root), 101, 150_000)
        stream.write(b">")

    with document_root(tmp_path, film=CONTENT) as root:

        async def run() -> None:
            async with live(root, Plain(on_input)) as made:
                made.connection.start()
                await made.say(b"go")
                assert await made.hear(150_002) == b"<" + doubled()[101 : 101 + 150_000] + b">"
                section = made.host.checkpoints[-1].section(STREAM, StreamSection)
                (ref,) = section.objects
                assert (ref.identifier, ref.size, ref.parameters) == ("/film.bin", 2 * len(CONTENT), b"\1")
                assert Extent(1, 150_000, object=0, offset=101) in section.extents

        asyncio.run(run())
        assert not root._open, "the file is closed with the connection"


def test_two_of_one_file_with_different_parameters_go_out_on_one_connection(tmp_path: Path) -> None:
    def on_input(stream: Stream, data: bytes) -> None:
        for add in (1, 2, 1):
            stream.send_object(Doubled(root, add), 0, 1000)
        stream.send_object(root.open("/film.bin"), 0, 1000)

    with document_root(tmp_path, film=CONTENT) as root:

        async def run() -> bytes:
            async with live(root, Plain(on_input)) as made:
                made.connection.start()
                await made.say(b"go")
                return await made.hear(4000)

        assert asyncio.run(run()) == doubled(1)[:1000] + doubled(2)[:1000] + doubled(1)[:1000] + CONTENT[:1000]
        assert not root._open


def test_it_is_computed_only_as_far_as_it_is_released(tmp_path: Path) -> None:
    made_objects: list[Doubled] = []

    def on_input(stream: Stream, data: bytes) -> None:
        if not made_objects:
            made_objects.append(Doubled(root))
            stream.release(5000)
            stream.send_object(made_objects[0], 0, 100_000)
        else:
            stream.release(None)

    with document_root(tmp_path, film=CONTENT) as root:

        async def run() -> None:
            async with live(root, Plain(on_input)) as made:
                made.connection.start()
                await made.say(b"go")
                assert await made.hear(5000) == doubled()[:5000]
                assert (made.connection.handed_over, made.connection.planned) == (5000, 100_000)
                reads = made_objects[0].reads
                assert await _nothing_comes(made)
                assert made_objects[0].reads == reads
                await made.say(b"on")
                assert await made.hear(95_000) == doubled()[5000:100_000]

        asyncio.run(run())


async def _nothing_comes(made: Live) -> bool:
    """A few turns of the loop pass; the client's socket stays empty."""
    for _ in range(20):
        await asyncio.sleep(0)
    try:
        return not made.client.recv(1)
    except BlockingIOError:
        return True


def test_an_answer_is_put_into_a_stream_that_is_paced(tmp_path: Path) -> None:
    """As RTSP does it in interleaved mode: cut, answer, go on with the object."""

    def on_input(stream: Stream, data: bytes) -> None:
        if data == b"play":
            stream.release(5000)
            stream.send_object(Doubled(root), 0, 100_000)
            return
        at = stream.object_at(stream.handed_over)
        assert at is not None
        cut = stream.handed_over + 100
        stream.truncate(cut)
        stream.write(b"[answer]")
        stream.send_object(Doubled(root), at.offset + 100, 20_000)
        stream.release(None)

    with document_root(tmp_path, film=CONTENT) as root:

        async def run() -> None:
            async with live(root, Plain(on_input)) as made:
                made.connection.start()
                await made.say(b"play")
                heard = await made.hear(5000)
                await made.say(b"ask")
                heard += await made.hear(100 + 8 + 20_000)
                assert heard == doubled()[:5100] + b"[answer]" + doubled()[5100:25_100]
                assert made.connection.seq_of("/film.bin", 5100) == wire(5108)

        asyncio.run(run())


def test_bytes_that_were_handed_over_cannot_be_truncated(tmp_path: Path) -> None:
    failed: list[MapError] = []

    def on_input(stream: Stream, data: bytes) -> None:
        if data == b"go":
            stream.write(b"x" * 100)
            return
        with pytest.raises(MapError) as caught:
            stream.truncate(99)
        failed.append(caught.value)
        stream.write(b"y")

    async def run() -> None:
        with document_root(tmp_path) as root:
            async with live(root, Plain(on_input)) as made:
                made.connection.start()
                await made.say(b"go")
                await made.hear(100)
                await made.say(b"cut")
                assert await made.hear(1) == b"y"

    asyncio.run(run())
    assert len(failed) == 1


class Broken(Doubled):
    def read(self, offset: int, length: int) -> bytes:
        raise ZeroDivisionError("an author's mistake")


class Short(Doubled):
    def read(self, offset: int, length: int) -> bytes:
        return b""


@pytest.mark.parametrize("kind", [Broken, Short])
def test_what_cannot_be_computed_resets_its_connection(tmp_path: Path, kind: type[Doubled]) -> None:
    application = Plain(lambda stream, data: stream.send_object(kind(root), 0, 100))

    with document_root(tmp_path, film=CONTENT) as root:

        async def run() -> None:
            async with live(root, application) as made:
                made.connection.start()
                await made.say(b"go")
                with pytest.raises(ConnectionResetError):
                    await made.hear(1)
                await made.host.over.wait()

        asyncio.run(run())
        assert not root._open
    assert application.calls == ["ended"]


# --- identity ---
@pytest.fixture
def root(tmp_path: Path) -> DocumentRoot:
    (tmp_path / "film.bin").write_bytes(CONTENT)
    return DocumentRoot(str(tmp_path))


def test_its_identity_is_the_files_and_its_own_size_and_parameters(root: DocumentRoot) -> None:
    one = Doubled(root)
    file = one.file.ref
    assert one.ref == ObjectRef("/film.bin", 2 * len(CONTENT), file.mtime_ns, file.digest, b"\1")
    assert key_of(one.ref) == ("/film.bin", b"\1") != key_of(file)
    assert root.same(one, one.ref)


@pytest.mark.parametrize(
    "change", [{"size": 2 * len(CONTENT) + 2}, {"parameters": b"\2"}, {"mtime_ns": 5}, {"parameters": b""}]
)
def test_another_size_other_parameters_or_another_file_are_another_object(
    root: DocumentRoot, change: dict[str, object]
) -> None:
    one = Doubled(root)
    assert not root.same(one, msgspec.structs.replace(one.ref, **change))


def test_the_files_digest_decides_when_it_is_known(root: DocumentRoot) -> None:
    async def run() -> None:
        await root.index()
        one = Doubled(root)
        wanted = msgspec.structs.replace(one.ref, mtime_ns=5)
        assert wanted.digest == hashlib.sha256(CONTENT).digest()
        assert root.same(one, wanted)
        assert not root.same(one, msgspec.structs.replace(wanted, digest=b"x" * 32))

    asyncio.run(run())


def test_a_digest_that_is_computed_meanwhile_is_part_of_the_next_checkpoint(tmp_path: Path) -> None:
    digest = hashlib.sha256(CONTENT).digest()

    def on_input(stream: Stream, data: bytes) -> None:
        one = Doubled(root)
        stream.release(100)
        stream.send_object(one, 0, 100_000)
        one.file.digest_known.append(lambda old, new: known.set())

    with document_root(tmp_path, film=CONTENT) as root:

        async def run() -> None:
            async with live(root, Plain(on_input)) as made:
                made.connection.start()
                await made.say(b"go")
                await known.wait()
                while not (ref := made.host.checkpoints[-1].section(STREAM, StreamSection).objects[0]).digest:
                    await asyncio.sleep(0)
                assert (ref.digest, ref.parameters) == (digest, b"\1")

        known = asyncio.Event()
        asyncio.run(run())


@pytest.mark.parametrize("parameters", [b"", b"x" * (LIMIT_PARAMETERS + 1)])
def test_parameters_that_no_checkpoint_could_carry_are_refused(root: DocumentRoot, parameters: bytes) -> None:
    class Any(Doubled):
        def __init__(self) -> None:
            GeneratedObject.__init__(self, root.open("/film.bin"), 1, parameters)

    with pytest.raises(LocalError, match="parameters"):
        Any()


# --- on a backup ---
def test_an_application_that_computes_nothing_has_no_such_object() -> None:
    ref = ObjectRef("/film.bin", 1, 1, b"", b"\1")
    with pytest.raises(ObjectMissing, match="computes no objects"):
        Application.generate(Plain(), ref)


def test_the_stream_of_a_checkpoint_goes_on_at_any_byte(root: DocumentRoot) -> None:
    one = Doubled(root)
    section = StreamSection(0, 700, 0, False, False, [one.ref], [Extent(0, 100_000, object=0, offset=50)])
    stream = ByteStream.resumed(ISS, section, proof(777))
    run = stream.next()
    assert run is not None and not hasattr(run, "data")
    assert one.read(run.offset, 1000) == doubled()[50 + 777 : 50 + 777 + 1000]
    assert SequenceMap.restored(ISS, 0, [one.ref], section.extents).seq_of("/film.bin", 50) == wire(0)
