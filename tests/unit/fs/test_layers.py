from __future__ import annotations

import fcntl
import gzip
import io
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings

from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    ForgeError,
    InternalError,
    InvalidInput,
    NotFound,
    Unavailable,
)
from forgeone_shim.fs import unpack
from forgeone_shim.fs.layers import LayerStore
from tests.unit.fs.archives import Member, diff_id, directory, symlink, tar
from tests.unit.fs.test_extract import hostile_archives

LAYER = tar([directory("etc"), Member("etc/conf", b"x" * 10_000), symlink("s", "etc")])
ID = diff_id(LAYER)
PACKED = gzip.compress(LAYER)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LayerStore]:
    store = LayerStore(tmp_path / "layers", sync_delay=0.01)
    yield store
    store.close()


def names(store: LayerStore, tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "layers").iterdir())


class Stalled(io.RawIOBase):
    """A stream whose last bytes come only when ``go`` is set."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.started = threading.Event()
        self.go = threading.Event()

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        self.started.set()
        self.go.wait(10)
        count = min(len(buffer), len(self._data))
        buffer[:count] = self._data[:count]
        self._data = self._data[count:]
        return count


@pytest.mark.parametrize(
    ("compression", "blob"), [("gzip", PACKED), ("zstd", zstandard.compress(LAYER)), ("none", LAYER)]
)
def test_a_layer_is_unpacked_and_found_again(store: LayerStore, tmp_path: Path, compression: str, blob: bytes) -> None:
    counted: list[int] = []
    info = store.unpack(ID, compression, io.BytesIO(blob), NEVER, counted.append)
    assert (store.path(ID) / "etc/conf").read_bytes() == b"x" * 10_000
    assert info == store.info(ID)
    assert (info.inodes, info.size) == (4, 4096 * 5)
    assert sum(counted) == len(blob)
    assert store.has(ID)
    assert store.ids() == [ID]
    assert LayerStore(tmp_path / "layers").has(ID)
    store.unpack(ID, compression, io.BytesIO(b"never read"), NEVER)
    store.remove(ID)
    store.remove(ID)
    assert not store.has(ID)
    assert names(store, tmp_path) == []
    with pytest.raises(NotFound):
        store.path(ID)


@pytest.mark.parametrize(
    "bad", ["", "sha256:", "sha256:" + "0" * 63, "sha256:" + "A" * 64, "sha512:" + "0" * 64, "sha256:../" + "0" * 61]
)
def test_an_id_that_is_no_diff_id_never_becomes_a_path(store: LayerStore, bad: str) -> None:
    for call in (store.has, store.path, store.remove, store.info):
        with pytest.raises(InvalidInput):
            call(bad)
    with pytest.raises(InvalidInput):
        store.unpack(ID + "\n", "gzip", io.BytesIO(PACKED), NEVER)


def test_a_layer_that_is_not_what_the_image_says_leaves_nothing(store: LayerStore, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="sha256"):
        store.unpack("sha256:" + "0" * 64, "gzip", io.BytesIO(PACKED), NEVER)
    assert names(store, tmp_path) == []


def test_bytes_after_the_archive_count_for_the_diff_id(store: LayerStore) -> None:
    longer = LAYER + bytes(5000)
    store.unpack(diff_id(longer), "gzip", io.BytesIO(gzip.compress(longer)), NEVER)
    with pytest.raises(FailedPrecondition):
        store.unpack(ID, "gzip", io.BytesIO(gzip.compress(longer)), NEVER)


def test_the_caller_may_veto_and_then_nothing_is_left(store: LayerStore, tmp_path: Path) -> None:
    def verify() -> None:
        raise Unavailable("the blob's digest is wrong")

    with pytest.raises(Unavailable):
        store.unpack(ID, "gzip", io.BytesIO(PACKED), NEVER, verify=verify)
    assert names(store, tmp_path) == []


@pytest.mark.parametrize("blob", [PACKED[:100], PACKED[:-4], b"", b"not an archive at all", b"\x1f\x8b" + bytes(50)])
def test_a_broken_blob_leaves_nothing(store: LayerStore, tmp_path: Path, blob: bytes) -> None:
    with pytest.raises(ForgeError):
        store.unpack(ID, "gzip", io.BytesIO(blob), NEVER)
    assert names(store, tmp_path) == []


def test_an_error_of_the_stream_passes_through_and_leaves_nothing(store: LayerStore, tmp_path: Path) -> None:
    class Failing(io.RawIOBase):
        def readinto(self, _buffer: object, /) -> int:
            raise Unavailable("stalled")

    with pytest.raises(Unavailable, match="stalled"):
        store.unpack(ID, "gzip", Failing(), NEVER)
    assert names(store, tmp_path) == []


def test_a_deadline_ends_a_pull_that_does_not_read(
    store: LayerStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "_boot", lambda: "import time; time.sleep(60)")
    begin = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        store.unpack(ID, "none", io.BytesIO(bytes(8 << 20)), Deadline.after(0.2))
    with pytest.raises(DeadlineExceeded):
        store.unpack(ID, "none", io.BytesIO(b"x"), Deadline.after(0.2))
    assert time.monotonic() - begin < 5
    assert names(store, tmp_path) == []


def test_a_process_that_dies_is_an_error_of_ours(
    store: LayerStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "_boot", lambda: "import os; os.abort()")
    with pytest.raises(InternalError, match="134"):
        store.unpack(ID, "none", io.BytesIO(bytes(8 << 20)), NEVER)
    assert names(store, tmp_path) == []


def test_pulls_of_one_layer_at_once_unpack_it_once(store: LayerStore) -> None:
    first, second = Stalled(PACKED), Stalled(b"")
    results = []
    threads = [
        threading.Thread(target=lambda s=stream: results.append(store.unpack(ID, "gzip", s, NEVER)))
        for stream in (first, second)
    ]
    threads[0].start()
    assert first.started.wait(10)
    threads[1].start()
    with pytest.raises(DeadlineExceeded):
        store.unpack(ID, "gzip", io.BytesIO(PACKED), Deadline.after(0.05))
    first.go.set()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert results[0] == results[1]
    assert not second.started.is_set()


def test_when_the_first_of_two_pulls_fails_the_second_does_the_work(store: LayerStore) -> None:
    first, second = Stalled(PACKED[:50]), Stalled(PACKED)
    second.go.set()
    outcomes: list[object] = []

    def pull(stream: Stalled) -> None:
        try:
            outcomes.append(store.unpack(ID, "gzip", stream, NEVER))
        except ForgeError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=pull, args=(stream,)) for stream in (first, second)]
    threads[0].start()
    assert first.started.wait(10)
    threads[1].start()
    first.go.set()
    for thread in threads:
        thread.join()
    assert isinstance(outcomes[0], InvalidInput)
    assert store.has(ID)


def test_layers_unpack_side_by_side(store: LayerStore) -> None:
    archives = [tar([Member(f"f{i}", os.urandom(1000))]) for i in range(8)]
    threads = [
        threading.Thread(target=store.unpack, args=(diff_id(data), "none", io.BytesIO(data), NEVER))
        for data in archives
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.ids() == sorted(map(diff_id, archives))


def test_another_process_may_have_been_faster(store: LayerStore, tmp_path: Path) -> None:
    other = LayerStore(tmp_path / "layers")
    store.unpack(
        ID, "gzip", io.BytesIO(PACKED), NEVER, verify=lambda: void(other.unpack(ID, "gzip", io.BytesIO(PACKED), NEVER))
    )
    assert names(store, tmp_path) == [ID.removeprefix("sha256:")]
    other.close()


def void(_: object) -> None:
    return


def test_recovery_removes_what_is_half_made_but_not_what_is_being_made(store: LayerStore, tmp_path: Path) -> None:
    root = tmp_path / "layers"
    for name in (".new-dead", ".old-dead", ".new-alive", "f" * 64):
        (root / name / "fs/deep").mkdir(parents=True)
    alive = os.open(root / ".new-alive", os.O_RDONLY)
    fcntl.flock(alive, fcntl.LOCK_EX)
    store.unpack(ID, "gzip", io.BytesIO(PACKED), NEVER)
    LayerStore(root).recover()
    assert names(store, tmp_path) == [".new-alive", ID.removeprefix("sha256:")]
    os.close(alive)
    store.recover()
    assert names(store, tmp_path) == [ID.removeprefix("sha256:")]


def test_recovery_keeps_only_synced_layers_across_a_reboot(tmp_path: Path) -> None:
    root = tmp_path / "layers"
    patient = LayerStore(root, sync_delay=3600)
    patient.unpack(ID, "gzip", io.BytesIO(PACKED), NEVER)
    patient.recover()
    assert patient.has(ID)
    patient.close()
    record = root / ID.removeprefix("sha256:") / "layer.json"
    shutil.copytree(root, tmp_path / "synced")
    (tmp_path / "synced" / record.parent.name / "synced").touch()
    for layers in (root, tmp_path / "synced"):
        path = layers / record.parent.name / "layer.json"
        path.write_text(path.read_text().replace('"boot":"', '"boot":"another-'))
        store = LayerStore(layers)
        store.recover()
        assert store.has(ID) == (layers != root)
        store.close()


def test_a_layer_is_marked_once_it_is_safe_on_disk(store: LayerStore, tmp_path: Path) -> None:
    store.unpack(ID, "gzip", io.BytesIO(PACKED), NEVER)
    marker = tmp_path / "layers" / ID.removeprefix("sha256:") / "synced"
    limit = time.monotonic() + 10
    while not marker.exists() and time.monotonic() < limit:
        threading.Event().wait(0.01)
    assert marker.exists()


def test_a_torn_layer_is_replaced(store: LayerStore, tmp_path: Path) -> None:
    home = tmp_path / "layers" / ID.removeprefix("sha256:")
    (home / "fs").mkdir(parents=True)
    (home / "layer.json").write_text("")
    assert not store.has(ID)
    assert store.ids() == []
    store.unpack(ID, "gzip", io.BytesIO(PACKED), NEVER)
    assert (store.path(ID) / "etc/conf").exists()


def test_no_descriptor_or_process_is_left(store: LayerStore) -> None:
    store.unpack(ID, "gzip", io.BytesIO(PACKED), NEVER)
    store.remove(ID)
    children = Path("/proc/thread-self/children")
    before, born = set(os.listdir("/proc/self/fd")), children.read_text()
    for blob in (PACKED, PACKED[:50], b""):
        try:
            store.unpack(ID, "gzip", io.BytesIO(blob), NEVER)
        except ForgeError:
            continue
        store.remove(ID)
    # Those of earlier tests may be closed meanwhile.
    assert set(os.listdir("/proc/self/fd")) <= before
    assert children.read_text() == born


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(archive=hostile_archives())
def test_hostile_layers_are_whole_or_not_there(store: LayerStore, tmp_path: Path, archive: bytes) -> None:
    identity = diff_id(archive)
    try:
        store.unpack(identity, "none", io.BytesIO(archive), NEVER)
    except ForgeError:
        assert not store.has(identity)
    else:
        store.remove(identity)
    assert names(store, tmp_path) == []
