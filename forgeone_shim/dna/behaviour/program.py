"""The program that the kernel runs at each system call (raw tracepoint ``sys_enter``), put together here.

In C it would be::

    int count(struct bpf_raw_tracepoint_args *ctx) {
        for (i = 0; i < LEVELS && control->level[i]; i++) {
            u64 group = bpf_get_current_ancestor_cgroup_id(control->level[i]);
            if ((entry = bpf_map_lookup_elem(&groups, &group))) goto watched;
        }
        return 0;
    watched:
        counts = bpf_map_lookup_elem(&counts_of, &entry->place);
        u64 slot = ctx->args[1];                         // the number, as its caller's kind of call has it
        if (slot >= NUMBERS) slot = OTHER;
        else if (current->thread_info says a 32-bit call) slot += NUMBERS;
        u64 *count = bpf_map_lookup_elem(counts, &zero) + slot;
        if (++*count > 1) return 0;                      // seen on this processor before
        order = bpf_map_lookup_elem(bpf_map_lookup_elem(&orders_of, &entry->place), &zero);
        if (order->place[slot]) return 0;                // seen on another
        u64 place = __sync_fetch_and_add(&order->next, 1) + 1;
        if (cmpxchg(&order->place[slot], 0, place) == 0)
            bpf_ringbuf_output(&news, &group, 8, BPF_RB_FORCE_WAKEUP);
        return 0;
    }

A group is found by its ancestors at the levels in use, so that one which a container makes below its own counts as the
container's. Counts are per processor: nothing is shared in the way of the calls. What is counted in is a map in an
array of maps: memory is taken only for those who are watched, and it is made before they are.
"""

from __future__ import annotations

import platform
import struct
from dataclasses import dataclass, field
from typing import Final

#: Slots 0 to NUMBERS-1 are system calls by number, the next as many those of 32-bit callers, the last all others.
NUMBERS: Final = 512
SLOTS: Final = 2 * NUMBERS
OTHER: Final = SLOTS - 1
#: Depths in the control group hierarchy at which watched groups may be at one time.
LEVELS: Final = 8

COUNTS_SIZE: Final = SLOTS * 8
ORDER_SIZE: Final = (SLOTS + 1) * 8
CONTROL_SIZE: Final = LEVELS * 4
#: Of a group: its place in the arrays of maps, and its depth in the hierarchy.
ENTRY: Final = struct.Struct("<II")
TRACEPOINT: Final = "sys_enter"
LICENCE: Final = "Dual BSD/GPL"

# Helpers (include/uapi/linux/bpf.h).
_LOOKUP, _CURRENT_TASK, _ANCESTOR_GROUP, _READ_KERNEL, _OUTPUT = 1, 35, 123, 113, 130
_FORCE_WAKEUP: Final = 2
# Where in a task (whose first member is its thread_info), and by which bit, a 32-bit system call is told: TS_COMPAT of
# thread_info.status (x86, Linux 5.11), TIF_32BIT of thread_info.flags (arm64).
_COMPAT: Final = {"x86_64": (16, 0x2), "aarch64": (0, 1 << 22)}
_R: Final = tuple(range(11))
_MAP, _MAP_VALUE = 1, 2


@dataclass(frozen=True, slots=True)
class Maps:
    """Descriptors of what the program works with: ``control`` is an array of one entry, ``groups`` a hash of
    :data:`ENTRY` by the group's id, ``counts`` and ``orders`` arrays of maps, ``news`` is a ring buffer."""

    control: int
    groups: int
    counts: int
    orders: int
    news: int


@dataclass(slots=True)
class _Assembler:
    """Instructions of eight bytes (Documentation/bpf/standardization/instruction-set.rst) with labels to jump to."""

    code: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    jumps: list[tuple[int, str]] = field(default_factory=list)

    def put(self, op: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> None:
        self.code.append((op, dst, src, off, imm))

    def label(self, name: str) -> None:
        self.labels[name] = len(self.code)

    def jump(self, op: int, to: str, dst: int = 0, imm: int = 0) -> None:
        self.jumps.append((len(self.code), to))
        self.put(op, dst, imm=imm)

    def load_map(self, dst: int, fd: int, kind: int = _MAP) -> None:
        self.put(0x18, dst, kind, 0, fd)
        self.put(0)

    def call(self, helper: int) -> None:
        self.put(0x85, imm=helper)

    def bytes(self) -> bytes:
        for at, to in self.jumps:
            op, dst, src, _, imm = self.code[at]
            self.code[at] = (op, dst, src, self.labels[to] - at - 1, imm)
        return b"".join(struct.pack("<BBhi", op, dst | src << 4, off, imm) for op, dst, src, off, imm in self.code)


# Of operations, those that are used: 64-bit arithmetic, loads and stores of 32 and 64 bits, jumps.
_MOV, _MOV_X, _ADD, _ADD_X, _AND, _LSH = 0xB7, 0xBF, 0x07, 0x0F, 0x57, 0x67
_LDX_W, _LDX_DW, _STX_W, _STX_DW, _ST_W, _ATOMIC = 0x61, 0x79, 0x63, 0x7B, 0x62, 0xDB
_JA, _JEQ, _JGE, _JSET, _JNE = 0x05, 0x15, 0x35, 0x45, 0x55
_EXIT = 0x95
_FETCH_ADD, _CMPXCHG = 0x01, 0xF1
_GROUP, _STATUS, _ZERO, _PLACE = -8, -16, -24, -32


def supported(machine: str = "") -> bool:
    """Whether there is a program for a kind of machine (default: this one)."""
    return (machine or platform.machine()) in _COMPAT


def assemble(maps: Maps, machine: str = "") -> bytes:
    """The program's code for a kind of machine (default: this one).

    :raises KeyError: it is not made for that machine.
    """
    where, bit = _COMPAT[machine or platform.machine()]
    a = _Assembler()
    r0, r1, r2, r3, r4, _, r6, r7, r8, r9, frame = _R

    def lookup(fd: int | None, key: int, missing: str) -> None:
        """r0: the value in the map (``None``: the one that r0 is) of the key in the frame."""
        if fd is None:
            a.put(_MOV_X, r1, r0)
        else:
            a.load_map(r1, fd)
        a.put(_MOV_X, r2, frame)
        a.put(_ADD, r2, imm=key)
        a.call(_LOOKUP)
        a.jump(_JEQ, missing, r0, 0)

    a.put(_MOV_X, r6, r1)
    a.load_map(r7, maps.control, _MAP_VALUE)
    for index in range(LEVELS):
        a.put(_LDX_W, r1, r7, index * 4)
        a.jump(_JEQ, "end", r1, 0)
        a.call(_ANCESTOR_GROUP)
        a.put(_STX_DW, frame, r0, _GROUP)
        lookup(maps.groups, _GROUP, f"not at {index}")
        a.jump(_JA, "watched")
        a.label(f"not at {index}")
    a.jump(_JA, "end")

    a.label("watched")
    a.put(_LDX_W, r1, r0)
    a.put(_STX_W, frame, r1, _PLACE)
    lookup(maps.counts, _PLACE, "end")
    a.put(_MOV_X, r8, r0)
    a.put(_LDX_DW, r9, r6, 8)
    a.jump(_JGE, "other", r9, NUMBERS)
    a.call(_CURRENT_TASK)
    a.put(_MOV_X, r3, r0)
    a.put(_ADD, r3, imm=where)
    a.put(_MOV, r2, imm=4)
    a.put(_MOV_X, r1, frame)
    a.put(_ADD, r1, imm=_STATUS)
    a.call(_READ_KERNEL)
    a.jump(_JNE, "other", r0, 0)
    a.put(_LDX_W, r1, frame, _STATUS)
    a.jump(_JSET, "foreign", r1, bit)
    a.jump(_JA, "counted")
    a.label("foreign")
    a.put(_ADD, r9, imm=NUMBERS)
    a.jump(_JA, "counted")
    a.label("other")
    a.put(_MOV, r9, imm=OTHER)

    a.label("counted")
    a.put(_AND, r9, imm=SLOTS - 1)
    a.put(_LSH, r9, imm=3)
    a.put(_ST_W, frame, 0, _ZERO, 0)
    a.put(_MOV_X, r0, r8)
    lookup(None, _ZERO, "end")
    a.put(_ADD_X, r0, r9)
    a.put(_LDX_DW, r1, r0)
    a.put(_ADD, r1, imm=1)
    a.put(_STX_DW, r0, r1)
    a.jump(_JNE, "end", r1, 1)

    lookup(maps.orders, _PLACE, "end")
    lookup(None, _ZERO, "end")
    a.put(_MOV_X, r8, r0)
    a.put(_MOV_X, r7, r0)
    a.put(_ADD_X, r7, r9)
    a.put(_LDX_DW, r1, r7)
    a.jump(_JNE, "end", r1, 0)
    a.put(_MOV, r1, imm=1)
    a.put(_ATOMIC, r8, r1, SLOTS * 8, _FETCH_ADD)
    a.put(_ADD, r1, imm=1)
    a.put(_MOV, r0)
    a.put(_ATOMIC, r7, r1, 0, _CMPXCHG)
    a.jump(_JNE, "end", r0, 0)
    a.load_map(r1, maps.news)
    a.put(_MOV_X, r2, frame)
    a.put(_ADD, r2, imm=_GROUP)
    a.put(_MOV, r3, imm=8)
    a.put(_MOV, r4, imm=_FORCE_WAKEUP)
    a.call(_OUTPUT)

    a.label("end")
    a.put(_MOV, r0)
    a.put(_EXIT)
    return a.bytes()
