from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgeone_shim.errors import ForgeError, InvalidInput
from forgeone_shim.fs import tar
from forgeone_shim.fs.stream import Archive
from tests.unit.fs.archives import Member, header, padded, pax_record
from tests.unit.fs.archives import tar as build

END = bytes(1024)


def read(data: bytes, piece: int = 700) -> list[tuple[tar.Entry, bytes]]:
    archive = Archive(data[at : at + piece] for at in range(0, len(data), piece))
    return [(entry, archive.take(entry.size)) for entry in tar.entries(archive)]


def only(data: bytes) -> tar.Entry:
    ((entry, _),) = read(data)
    return entry


def pax(*records: tuple[bytes, bytes], type_: bytes = b"x") -> bytes:
    body = b"".join(pax_record(*record) for record in records)
    return header(b"PaxHeaders/x", type_, len(body)) + padded(body)


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("length", [1, 99, 100, 101, 155, 240])
def test_every_format_gives_names_of_every_length_back(format_: int, length: int) -> None:
    name = "/".join(["d" * 49] * (length // 50) + ["f" * (length % 50 or 50)])
    entry, data = read(build([Member(name, b"content")], format_))[0]
    assert (entry.name, data, entry.type) == (name.encode(), b"content", tar.REGULAR)


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_link_targets_and_big_ids_and_odd_times(format_: int) -> None:
    member = Member("l", type=tarfile.SYMTYPE, link="t" * 3000, uid=3_000_000, gid=2**31, mtime=-5)
    entry = only(build([member], format_))
    assert (entry.link, entry.uid, entry.gid, entry.mtime) == (b"t" * 3000, 3_000_000, 2**31, -5_000_000_000)


def test_a_ustar_prefix_and_a_v7_header() -> None:
    assert only(header(b"b", at_345=b"a/a") + END).name == b"a/a/b"
    assert only(header(b"b", magic=b"\0" * 8, at_345=b"junk") + END).name == b"b"


def test_the_times_in_a_star_header_are_no_part_of_the_name() -> None:
    block = header(b"b", at_345=b"p" * 131, at_476=b"00000000000 00000000000 ", at_508=b"tar\0")
    assert only(block + END).name == b"p" * 131 + b"/b"


def test_pax_records_override_the_header() -> None:
    records = [(b"path", b"new"), (b"uid", b"7"), (b"gid", b"8"), (b"mtime", b"12.25"), (b"size", b"3")]
    entry, data = read(pax(*records) + header(b"old", size=1) + padded(b"abc") + END)[0]
    assert (entry.name, entry.uid, entry.gid, entry.mtime, data) == (b"new", 7, 8, 12_250_000_000, b"abc")


def test_an_empty_pax_value_leaves_the_header_as_it_is() -> None:
    assert only(pax((b"path", b""), (b"uid", b"")) + header(b"old") + END).name == b"old"


def test_global_pax_headers_change_no_entry() -> None:
    data = pax((b"path", b"evil"), (b"uid", b"0"), (b"comment", b"hi"), type_=b"g") + header(b"good") + END
    assert only(data).name == b"good"


def test_extended_attributes_keep_their_bytes() -> None:
    entry = only(pax((b"SCHILY.xattr.user.x", b"a\0=\n\xff")) + header(b"f") + END)
    assert entry.xattrs == {"user.x": b"a\0=\n\xff"}


def test_a_trailing_slash_makes_an_old_regular_entry_a_directory() -> None:
    assert only(header(b"d/", b"\0") + END).type == tar.DIRECTORY
    assert only(header(b"d", b"\0") + END).type == tar.REGULAR
    assert only(header(b"f", b"7") + END).type == tar.REGULAR


def test_sizes_of_entries_without_data_are_ignored() -> None:
    entries = read(header(b"d", b"5", size=4096) + header(b"f") + END)
    assert [entry.name for entry, _ in entries] == [b"d", b"f"]


def test_an_archive_may_end_without_zero_blocks() -> None:
    assert only(header(b"f")).name == b"f"
    assert read(b"") == []


OLD_SPARSE = header(b"s", b"S", 3, at_386=b"%011o\0%011o\0" % (4096, 3), at_483=b"%011o\0" % 8192)
MAP_1_0 = padded(b"2\n4096\n1\n8000\n2\n")
SPARSE = {
    "old GNU": OLD_SPARSE + padded(b"abc"),
    "old GNU with an extension": header(b"s", b"S", 3, at_482=b"\x01", at_483=b"%011o\0" % 8192)
    + padded(b"%011o\0%011o\0" % (4096, 3))
    + padded(b"abc"),
    "PAX 0.0": pax(
        (b"GNU.sparse.major", b"0"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.size", b"8192"),
        (b"GNU.sparse.offset", b"4096"),
        (b"GNU.sparse.numbytes", b"1"),
        (b"GNU.sparse.offset", b"8000"),
        (b"GNU.sparse.numbytes", b"2"),
    )
    + header(b"s", size=3)
    + padded(b"abc"),
    "PAX 0.1": pax((b"GNU.sparse.size", b"8192"), (b"GNU.sparse.map", b"4096,1,8000,2"), (b"GNU.sparse.name", b"s"))
    + header(b"GNUSparseFile.0/s", size=3)
    + padded(b"abc"),
    "PAX 1.0": pax(
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.realsize", b"8192"),
        (b"GNU.sparse.name", b"s"),
    )
    + header(b"GNUSparseFile.0/s", size=512 + 3)
    + MAP_1_0
    + padded(b"abc"),
}


@pytest.mark.parametrize("form", SPARSE)
def test_sparse_files_in_every_form(form: str) -> None:
    entry, data = read(SPARSE[form] + header(b"next") + END)[0]
    assert (entry.name, entry.type, entry.real_size, data) == (b"s", tar.REGULAR, 8192, b"abc")
    assert entry.sparse in ([(4096, 3)], [(4096, 1), (8000, 2)])
    assert len(read(SPARSE[form] + header(b"next") + END)) == 2


BAD = {
    "checksum": b"x" + header(b"f")[1:] + END,
    "letters in a number": header(b"f", at_100=b"zzzzzzz\0"),
    "python's own number syntax": header(b"f", at_100=b"0o17_7\0\0"),
    "negative size": header(b"f", at_124=b"\xff" * 12),
    "size beyond 63 bits": header(b"f", at_124=b"\x80\xff" + b"\xff" * 10),
    "negative owner": header(b"f", at_108=b"\xff" * 8),
    "owner that chown takes for none": pax((b"uid", b"4294967295")) + header(b"f"),
    "no name": header(b""),
    "unknown type": header(b"f", b"V"),
    "device number": header(b"f", b"3", at_329=b"\x80\0\0\0\0\1\0\0"),
    "cut header": header(b"f")[:300],
    "cut data": header(b"f", size=10) + b"abc",
    "cut padding": header(b"f", size=10) + b"x" * 10,
    "lone zero block": bytes(512) + header(b"f"),
    "giant PAX header": header(b"p", b"x", 1 << 21) + bytes(1 << 21) + header(b"f"),
    "giant long name": header(b"p", b"L", 1 << 40),
    "PAX without length": header(b"p", b"x", 8) + padded(b"path=abc"),
    "PAX length beyond the record": header(b"p", b"x", 12) + padded(b"99 path=abc\n"),
    "PAX length inside itself": header(b"p", b"x", 12) + padded(b"1 path=abcd\n"),
    "PAX without newline": header(b"p", b"x", 12) + padded(b"12 path=abcd"),
    "PAX key with NUL": pax((b"a\0b", b"c")) + header(b"f"),
    "PAX path with NUL": pax((b"path", b"a\0b")) + header(b"f"),
    "PAX record without a length": header(b"x", type_=b"x", size=40) + padded(b"x" * 38 + b"=\n") + header(b"f"),
    "PAX uid of letters": pax((b"uid", b"root")) + header(b"f"),
    "PAX time of letters": pax((b"mtime", b"1.x")) + header(b"f"),
    "long name": pax((b"path", b"a/" * 2049)) + header(b"f"),
    "long attribute": pax((b"SCHILY.xattr.user." + b"x" * 300, b"")) + header(b"f"),
    "big attribute": pax((b"SCHILY.xattr.user.x", b"x" * 65537)) + header(b"f"),
    "sparse overlap": pax((b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"0,2,1,1")) + header(b"f", size=3),
    "sparse beyond the end": pax((b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"8,3")) + header(b"f", size=3),
    "sparse without its data": pax((b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"0,5")) + header(b"f", size=3),
    "sparse odd": pax((b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"0")) + header(b"f", size=3),
    "sparse map that never ends": pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"))
    + header(b"f", size=1 << 22)
    + b"1" * (1 << 22),
    "sparse map of a billion": pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"))
    + header(b"f", size=512)
    + padded(b"1000000000\n"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_malformed_is_refused(case: str) -> None:
    with pytest.raises(InvalidInput):
        read(BAD[case])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=2048))
def test_random_bytes_raise_nothing_but_our_errors(data: bytes) -> None:
    try:
        read(data)
    except ForgeError:
        return


def mutations() -> st.SearchStrategy[bytes]:
    whole = b"".join([*SPARSE.values(), pax((b"path", b"p/q"), (b"mtime", b"1.5")), header(b"f", size=3), padded(b"x")])

    @st.composite
    def mutated(draw: st.DrawFn) -> bytes:
        data = bytearray(whole)
        for _ in range(draw(st.integers(1, 6))):
            at = draw(st.integers(0, len(data) - 1))
            data[at] = draw(st.integers(0, 255))
            # Most of what is hit are headers, and only those with a right checksum are looked into.
            start = at - at % 512
            block = data[start : start + 512]
            block[148:156] = b" " * 8
            if draw(st.booleans()):
                data[start + 148 : start + 156] = b"%06o\0 " % sum(block)
        return bytes(data[: draw(st.integers(0, len(data)))])

    return mutated()


@settings(max_examples=400, deadline=None)
@given(mutations())
def test_mutated_headers_raise_nothing_but_our_errors(data: bytes) -> None:
    try:
        for entry, _ in read(data):
            assert entry.name
            assert entry.size >= 0
    except ForgeError:
        return


names = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1, max_size=200)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(names, st.binary(max_size=1500)), max_size=5), st.integers(1, 3000))
def test_what_the_standard_library_wrote_is_read_alike(members: list[tuple[str, bytes]], piece: int) -> None:
    data = build([Member(name, content) for name, content in members])
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = [(info.name, archive.extractfile(info)) for info in archive]
        wanted: Iterator[tuple[str, bytes]] = ((name, file.read() if file else b"") for name, file in expected)
        # tarfile drops trailing slashes itself.
        found = [(entry.name.decode().rstrip("/"), content) for entry, content in read(data, piece)]
        assert found == [(name.rstrip("/"), content) for name, content in wanted]
