"""Tiles, as https://c2sp.org/tlog-tiles gives examples of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.audit import merkle, tiles
from forgeone_shim.audit.tiles import Edge
from forgeone_shim.errors import FailedPrecondition


def test_paths_are_those_of_the_specification() -> None:
    assert tiles.path(0, 1234067) == "tile/0/x001/x234/067"
    assert tiles.path(0, 0) == "tile/0/000"
    assert tiles.path(2, 999, 5) == "tile/2/999.p/5"
    assert tiles.path(tiles.ENTRIES, 1000, 255) == "tile/entries/x001/000.p/255"


def test_partial_tiles_are_those_of_the_specification() -> None:
    assert list(tiles.levels(70_000)) == [(0, 273, 112), (1, 1, 17), (2, 0, 1)]
    assert list(tiles.levels(256)) == [(1, 0, 1)]
    assert list(tiles.levels(0)) == []


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 65_535, 65_536, 65_537, 70_000])
def test_an_edge_read_back_goes_on_as_the_one_that_was_written(size: int) -> None:
    edge = Edge()
    whole: dict[tuple[int, int], list[bytes]] = {}
    for number in range(size):
        for level, at, tile in edge.add(merkle.leaf(str(number).encode())):
            whole[level, at] = tile
    assert len(whole) == size // 256 + size // 65_536
    for (level, at), tile in whole.items():
        if level:
            assert tile == [merkle.fold(whole[level - 1, at * 256 + each]) for each in range(256)]
    again = Edge.read(size, lambda level, _number, width: edge.tiles[level][:width])
    assert again.frontier.root() == edge.frontier.root()
    for other in (again, edge):
        for number in range(300):
            other.add(merkle.leaf(str(number).encode()))
    assert again.frontier.root() == edge.frontier.root()


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_a_bundle_holds_what_was_put_in(entries: list[bytes]) -> None:
    assert tiles.unbundle(tiles.bundle(entries), len(entries), "it") == entries


@given(st.binary(max_size=300), st.integers(0, 20))
def test_whatever_is_read_is_a_bundle_or_an_error(data: bytes, width: int) -> None:
    try:
        assert tiles.bundle(tiles.unbundle(data, width, "it")) == data
    except FailedPrecondition:
        return


@pytest.mark.parametrize("data", [b"\0", b"\0\1", b"\0\5abc", b"\0\1a\0", b"\0\1a\0\1b\0\1c", b""])
def test_a_bundle_that_ends_elsewhere_is_refused(data: bytes) -> None:
    with pytest.raises(FailedPrecondition, match="the bundle"):
        tiles.unbundle(data, 2, "the bundle")


def test_a_tile_of_another_size_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="has 31 bytes, not 32"):
        tiles.hashes(bytes(31), 1, "it")


def test_an_entry_that_is_too_long_is_no_entry() -> None:
    with pytest.raises(ValueError, match="more than 65535"):
        tiles.bundle([bytes(65_536)])
