"""A classic BPF interpreter: enough of seccomp(2)'s machine to ask a filter what it does."""

from __future__ import annotations

import struct

AUDIT_ARCH_X86_64 = 0xC000003E
ALLOW, ERRNO = 0x7FFF0000, 0x00050000


def decide(program: bytes, number: int, *arguments: int, arch: int = AUDIT_ARCH_X86_64) -> int:
    """The filter's return value for one system call."""
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    data = struct.pack("<iIQ6Q", number, arch, 0, *padded)
    instructions = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator = counter = 0
    memory = [0] * 16
    index = 0
    while True:
        code, true, false, k = instructions[counter]
        counter += 1
        match code & 0x07:
            case 0x00:  # LD
                mode = code & 0xE0
                accumulator = struct.unpack_from("<I", data, k)[0] if mode == 0x20 else memory[k] if mode == 0x60 else k
            case 0x01:  # LDX
                index = memory[k] if code & 0xE0 == 0x60 else k
            case 0x02:  # ST
                memory[k] = accumulator
            case 0x04:  # ALU
                operand = index if code & 0x08 else k
                match code & 0xF0:
                    case 0x50:
                        accumulator &= operand
                    case 0x40:
                        accumulator |= operand
                    case other:
                        raise AssertionError(f"ALU {other:#x}")
            case 0x05:  # JMP
                operand = index if code & 0x08 else k
                match code & 0xF0:
                    case 0x00:
                        counter += k
                        continue
                    case 0x10:
                        taken = accumulator == operand
                    case 0x20:
                        taken = accumulator > operand
                    case 0x30:
                        taken = accumulator >= operand
                    case 0x40:
                        taken = bool(accumulator & operand)
                    case other:
                        raise AssertionError(f"JMP {other:#x}")
                counter += true if taken else false
            case 0x06:  # RET
                return accumulator if code & 0x18 == 0x10 else k
            case other:
                raise AssertionError(f"class {other:#x}")
