"""The program as the kernel will get it; that its verifier takes it is shown in ``tests/e2e/test_recorder.py``."""

from __future__ import annotations

import struct

import pytest

from forgeone_shim.dna.behaviour import names, program
from forgeone_shim.dna.behaviour.program import LEVELS, NUMBERS, OTHER, SLOTS, Maps

MAPS = Maps(control=11, groups=12, counts=13, orders=14, news=15)


def _instructions(code: bytes) -> list[tuple[int, int, int, int, int]]:
    return [(op, regs & 15, regs >> 4, off, imm) for op, regs, off, imm in struct.iter_unpack("<BBhi", code)]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_jump_leads_forward_to_an_instruction(machine: str) -> None:
    code = _instructions(program.assemble(MAPS, machine))
    second_halves = {at + 1 for at, one in enumerate(code) if one[0] == 0x18}
    jumps = [(at, one) for at, one in enumerate(code) if one[0] & 7 == 5 and one[0] not in (0x85, 0x95)]
    assert len(jumps) > LEVELS
    for at, (_, _, _, off, _) in jumps:
        assert off >= 0, "a loop"
        assert at + off + 1 < len(code)
        assert at + off + 1 not in second_halves
    assert code[-1][0] == 0x95


def test_every_map_is_used_and_no_other() -> None:
    loads = [(one[2], one[4]) for one in _instructions(program.assemble(MAPS, "x86_64")) if one[0] == 0x18]
    assert {fd for _, fd in loads} == {11, 12, 13, 14, 15}
    assert [fd for kind, fd in loads if kind == 2] == [11], "of the control alone the value is read in place"


def test_a_machine_that_is_not_known_has_no_program() -> None:
    assert program.supported("x86_64")
    assert not program.supported("s390x")
    with pytest.raises(KeyError):
        program.assemble(MAPS, "s390x")


def test_slots_have_names() -> None:
    assert names.name(OTHER) == "other"
    assert names.name(435) == "clone3"
    assert names.name(462) == "mseal", "newer than most a libseccomp"
    assert names.name(500) == "#500"
    assert names.name(NUMBERS + 500) == "32-bit:#500"
    assert len({names.name(slot) for slot in range(SLOTS)}) == SLOTS


@pytest.mark.skipif(not program.supported("x86_64") or names.name(0) != "read", reason="needs x86_64 and libseccomp")
def test_a_number_means_another_call_to_a_32_bit_caller() -> None:
    assert (names.name(11), names.name(NUMBERS + 11)) == ("munmap", "32-bit:execve")
