from __future__ import annotations

import gzip
import hashlib
import io
import os
from collections.abc import Iterator

import pytest
import zstandard

from forgeone_shim.errors import InvalidInput
from forgeone_shim.fs.stream import CHUNK, Archive, ahead, decompress, hashed

DATA = os.urandom(300_000) + bytes(5_000_000) + os.urandom(10)


def opened(blob: bytes, piece: int = 65536) -> Iterator[bytes]:
    file = io.BytesIO(blob)
    return decompress(lambda: file.read(piece))


BLOBS = {
    "plain": DATA,
    "gzip": gzip.compress(DATA, 1),
    "gzip members": gzip.compress(DATA[:1000]) + gzip.compress(b"") + gzip.compress(DATA[1000:], 1),
    "zstd": zstandard.compress(DATA),
    "zstd frames": zstandard.compress(DATA[:1000]) + zstandard.compress(DATA[1000:]),
    "zstd after a skippable frame": b"\x50\x2a\x4d\x18\x03\0\0\0abc" + zstandard.compress(DATA),
}


@pytest.mark.parametrize("form", BLOBS)
@pytest.mark.parametrize("piece", [1000, 1 << 20])
def test_every_form_gives_its_content(form: str, piece: int) -> None:
    assert b"".join(opened(BLOBS[form], piece)) == DATA


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_a_bomb_comes_in_bounded_chunks(form: str) -> None:
    chunks = [len(chunk) for chunk in opened(BLOBS[form])]
    assert max(chunks) <= CHUNK


@pytest.mark.parametrize(
    "blob",
    [
        BLOBS["gzip"][:-9],
        BLOBS["gzip"][:5],
        BLOBS["gzip"] + b"junk",
        BLOBS["gzip"][:50] + b"\xff" * 50 + BLOBS["gzip"][100:],
        BLOBS["gzip"][:-8] + bytes(8),
        BLOBS["zstd"] + b"junk",
        BLOBS["zstd"][:6] + b"\xff" * 50,
    ],
)
def test_a_broken_blob_is_refused(blob: bytes) -> None:
    with pytest.raises(InvalidInput):
        b"".join(opened(blob))


def test_a_zstd_window_beyond_bounds_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, write_content_size=0)
    writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(InvalidInput):
        list(opened(writer.compress(DATA) + writer.flush()))


def test_the_thread_ahead_hands_on_chunks_and_errors_in_order() -> None:
    def chunks() -> Iterator[bytes]:
        yield from (b"%d" % i for i in range(100))
        raise InvalidInput("layer", "late")

    seen = []
    with pytest.raises(InvalidInput, match="late"):
        for chunk in ahead(chunks()):
            seen.append(chunk)
    assert seen == [b"%d" % i for i in range(100)]


def test_the_hash_covers_what_follows_the_archive() -> None:
    digest = hashlib.sha256()
    archive = Archive(hashed(iter([DATA[:700], b"", DATA[700:]]), digest))
    assert archive.block() == DATA[:512]
    archive.drain()
    assert digest.digest() == hashlib.sha256(DATA).digest()
