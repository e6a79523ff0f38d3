"""The guest's first process: compiled here from the sources that ForgeOne brings, or given ready."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from engines.microvm.boot.elf import Elf
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, syscall_error
from forgeone_shim.kernel import spawn

SOURCES: Final = Path(__file__).resolve().parents[1] / "guest"
READY: Final = SOURCES / "agent"
"""Where a package of ForgeOne's has it compiled."""
COMPILERS: Final = ("musl-gcc", "gcc")
# musl has no headers of the kernel's: those of the system are looked for after its own. The same sources give the same
# bytes wherever they are.
FLAGS: Final = (
    *("-std=gnu11", "-O2", "-static", "-s", "-Wall", "-Wextra", "-fstack-protector-strong", "-D_GNU_SOURCE"),
    *("-idirafter", "/usr/include", "-idirafter", "/usr/include/x86_64-linux-gnu"),
    *("-Wl,--build-id=none", "-Wl,-z,noexecstack"),
)
_MAX: Final = 64 * 1024 * 1024
_FIX: Final = "apt-get install -y gcc linux-libc-dev musl-tools"


@dataclass(frozen=True, slots=True)
class Sources:
    """The agent's sources, and the compiler for them."""

    compiler: str
    files: tuple[Path, ...]

    @property
    def digest(self) -> str:
        """Of all that decides what will be compiled, but the compiler's version."""
        hashed = sha256(f"{self.compiler} {FLAGS}\n".encode())
        for file in self.files:
            content = file.read_bytes()
            hashed.update(f"{file.name} {len(content)}\n".encode() + content)
        return hashed.hexdigest()


def find(given: str, ready: Path = READY) -> Sources | Path:
    """The agent that the configuration names, or that was compiled when ForgeOne was packed, or what to compile.

    :raises FailedPrecondition: there is neither one nor a compiler.
    """
    if given:
        return Path(given)
    return ready if ready.is_file() else sources()


def sources(directory: Path = SOURCES) -> Sources:
    """What there is to compile. :raises FailedPrecondition: there is no compiler."""
    compiler = next(filter(None, map(spawn.find_program, COMPILERS)), None)
    if compiler is None:
        raise FailedPrecondition("there is no C compiler for the guest's agent", fix=_FIX)
    return Sources(compiler, tuple(sorted([*directory.glob("*.c"), *directory.glob("*.h")])))


def build(found: Sources, work: Path, deadline: Deadline) -> bytes:
    """The agent, compiled in the directory ``work``. :raises FailedPrecondition: the compiler says why not."""
    made = work / "agent"
    names = [str(file) for file in found.files if file.suffix == ".c"]
    prefix = f"-ffile-prefix-map={found.files[0].parent}=guest"
    argv = (Path(found.compiler).name, *FLAGS, prefix, "-o", str(made), *names)
    done = spawn.run(found.compiler, argv, deadline)
    if done.code:
        raise FailedPrecondition(f"the guest's agent cannot be compiled: {done.text[-2000:]}", fix=_FIX)
    return checked(made)


def checked(path: Path) -> bytes:
    """The agent in a file. :raises FailedPrecondition: it is no static executable of 64 bits."""
    try:
        with path.open("rb") as file:
            image = file.read(_MAX + 1)
    except OSError as error:
        raise syscall_error("read", path, error) from None
    if len(image) > _MAX or Elf(image, str(path)).has_interpreter():
        raise FailedPrecondition(f"{path} is no static executable: the guest has no libraries")
    return image
