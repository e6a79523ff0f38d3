"""The tree against RFC 6962's own example, against pymerkle, and against its definition."""

from __future__ import annotations

import pymerkle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.audit import merkle
from forgeone_shim.audit.merkle import Frontier

# The inputs and roots of the reference implementation's tests (google/certificate-transparency, merkle_tree_test).
INPUTS = [
    bytes.fromhex(one)
    for one in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = (
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


def slow_root(leaves: list[bytes]) -> bytes:
    """MTH as section 2.1 defines it."""
    if not leaves:
        return merkle.EMPTY
    if len(leaves) == 1:
        return merkle.leaf(leaves[0])
    middle = 1 << (len(leaves) - 1).bit_length() - 1
    return merkle.node(slow_root(leaves[:middle]), slow_root(leaves[middle:]))


def subtrees(leaves: list[bytes]) -> merkle.Subtrees:
    def find(height: int, place: int) -> bytes:
        part = leaves[place << height : (place + 1) << height]
        assert len(part) == 1 << height
        return slow_root(part)

    return find


def frontier(leaves: list[bytes]) -> Frontier:
    made = Frontier()
    for one in leaves:
        made.push(merkle.leaf(one))
    return made


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_of_the_reference(size: int) -> None:
    assert frontier(INPUTS[:size]).root().hex() == ROOTS[size]
    assert merkle.root(size, subtrees(INPUTS)).hex() == ROOTS[size]


def test_proofs_are_those_of_the_rfc() -> None:
    # Section 2.1.3, a tree of seven.
    leaves = INPUTS[:7]
    hashes = [merkle.leaf(one) for one in leaves]
    g, h = merkle.node(*hashes[:2]), merkle.node(*hashes[2:4])
    i, j = merkle.node(*hashes[4:6]), hashes[6]
    k = merkle.node(g, h)
    find = subtrees(leaves)
    assert merkle.inclusion(0, 7, find) == [hashes[1], h, merkle.node(i, j)]
    assert merkle.inclusion(3, 7, find) == [hashes[2], g, merkle.node(i, j)]
    assert merkle.inclusion(4, 7, find) == [hashes[5], j, k]
    assert merkle.inclusion(6, 7, find) == [i, k]
    assert merkle.consistency(3, 7, find) == [hashes[2], hashes[3], g, merkle.node(i, j)]
    assert merkle.consistency(4, 7, find) == [merkle.node(i, j)]
    assert merkle.consistency(6, 7, find) == [i, j, k]


def test_roots_are_those_of_another_implementation() -> None:
    oracle = pymerkle.InmemoryTree(algorithm="sha256")
    made = Frontier()
    for number in range(300):
        data = str(number).encode()
        oracle.append_entry(data)
        made.push(merkle.leaf(data))
        assert made.root() == oracle.get_root()


@given(st.integers(1, 70), st.data())
def test_every_entry_is_shown_to_be_in_every_tree_and_no_other_is(size: int, data: st.DataObject) -> None:
    leaves = [bytes([number]) for number in range(size)]
    index = data.draw(st.integers(0, size - 1))
    root = slow_root(leaves)
    proof = merkle.inclusion(index, size, subtrees(leaves))
    assert merkle.included(index, size, merkle.leaf(leaves[index]), proof, root)
    assert not merkle.included(index, size, merkle.leaf(b"other"), proof, root)
    assert not merkle.included(index, size, merkle.leaf(leaves[index]), [*proof, root], root)
    if proof:
        assert not merkle.included(index, size, merkle.leaf(leaves[index]), proof[:-1], root)
        assert not merkle.included(index ^ 1, size, merkle.leaf(leaves[index]), proof, root)
    assert not merkle.included(size, size, merkle.leaf(leaves[index]), proof, root)


@given(st.integers(0, 70), st.integers(0, 70), st.data())
def test_every_tree_is_shown_to_go_on_from_every_earlier_one_and_from_no_other(
    one: int, other: int, data: st.DataObject
) -> None:
    old, new = sorted((one, other))
    leaves = [bytes([number]) for number in range(new)]
    before, after = slow_root(leaves[:old]), slow_root(leaves)
    proof = merkle.consistency(old, new, subtrees(leaves))
    assert merkle.consistent(old, new, before, after, proof)
    wrong = bytes(32)
    assert not merkle.consistent(old, new, wrong, after, proof)
    assert not merkle.consistent(old, new, before, after, [*proof, wrong])
    if 0 < old < new:
        assert not merkle.consistent(old, new, before, wrong, proof)
        at = data.draw(st.integers(0, len(proof) - 1))
        assert not merkle.consistent(old, new, before, after, [*proof[:at], wrong, *proof[at + 1 :]])
        assert not merkle.consistent(old, new, before, after, proof[:-1])
    assert not merkle.consistent(new + 1, new, before, after, proof)


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=5), st.integers(-1, 9), st.integers(-1, 9))
def test_nothing_else_is_a_proof(proof: list[bytes], one: int, other: int) -> None:
    assert not merkle.included(one, other, bytes(32), proof, b"root")
    if not (one in (0, other) and not proof):
        assert not merkle.consistent(one, other, b"before", b"after", proof)


def test_there_is_no_proof_of_what_is_not_there() -> None:
    for call in (merkle.inclusion, merkle.consistency):
        with pytest.raises(ValueError, match=r"there is no|does not begin"):
            call(5, 4, subtrees(INPUTS))
