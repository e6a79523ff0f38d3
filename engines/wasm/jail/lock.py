"""The way back out, given up step by step: users, capabilities, limits, files, system calls.

The order is the kernel's: each step needs what a later one takes away.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from engines.wasm.jail.plan import JailPlan
from forgeone_shim.errors import InvalidInput, syscall_error
from forgeone_shim.kernel import landlock, privileges

# Everything that a guest's files are for. Not executing, no device nodes, sockets and fifos, no orders to devices.
_ALLOWED: Final = (
    landlock.READ_FILE
    | landlock.WRITE_FILE
    | landlock.TRUNCATE
    | landlock.READ_DIR
    | landlock.REMOVE_DIR
    | landlock.REMOVE_FILE
    | landlock.MAKE_DIR
    | landlock.MAKE_REG
    | landlock.MAKE_SYM
    | landlock.REFER
)


def lock(plan: JailPlan) -> None:
    """:func:`become` and then :func:`restrict`.

    :raises ForgeError: a step failed. The process is of no use then.
    """
    become(plan)
    restrict(plan)


def become(plan: JailPlan) -> None:
    """Be the jail's user and nobody else, without capabilities, in its working directory.

    What is opened from here on is opened as the guest may.

    :raises InvalidInput: the user may not enter the working directory.
    """
    with _step("give up capabilities"):
        privileges.give_up_bounding()
    with _step(f"become user {plan.uid}, group {plan.gid}"):
        os.setgroups(plan.groups)
        os.setresgid(plan.gid, plan.gid, plan.gid)
        os.setresuid(plan.uid, plan.uid, plan.uid)
    with _step("give up capabilities"):
        privileges.give_up_capabilities()
    try:
        os.chdir(plan.cwd)
    except OSError as error:
        raise InvalidInput("working_dir", f"user {plan.uid} cannot enter {plan.cwd}: {error.strerror}") from error


def restrict(plan: JailPlan) -> None:
    """Nothing from now on but what a guest needs: no other files, no other system calls, no more memory to execute.

    Code has to be in memory before, as does every function that C is to call back.
    """
    with _step("refuse privileges"):
        # Once more, as the kernel's settings may have another answer to the change of user.
        privileges.not_dumpable()
        privileges.no_new_privileges()
    if plan.landlock:
        with _step("restrict access to files"):
            root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                landlock.restrict(plan.landlock, root, _ALLOWED)
            finally:
                os.close(root)
    with _step("filter system calls"):
        for one in plan.filters:
            privileges.filter_system_calls(one.program, one.flags)


@contextmanager
def _step(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise syscall_error(what, "in the jail", error) from error
