"""The init of a pod whose containers share their processes: the first in their PID namespace, which reaps, and no more.

It has an empty directory for a root, no user's name, and system calls to wait for children with. With it everything in
the namespace ends.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import Sequence
from typing import Final, NoReturn

from engines.base import IdMapping, SandboxPlan
from engines.wasm.jail.enter import before_fork, enter
from engines.wasm.jail.filter import reaper_profile
from engines.wasm.jail.lock import lock
from engines.wasm.jail.plan import JailPlan
from engines.wasm.jail.planning import compiled, directories, root_on_host
from forgeone_shim.errors import InternalError
from forgeone_shim.kernel import landlock
from forgeone_shim.kernel.bpf import Compiler
from forgeone_shim.kernel.descriptors import close_all_but
from forgeone_shim.kernel.host import Host

_NOBODY: Final = 65535
# As a pause process has: only what holds the host together is killed later.
_OOM_SCORE_ADJ: Final = -998
_ERROR_MAX: Final = 4096


def init_cgroup(plan: SandboxPlan, host: Host) -> str:
    """The cgroup of a pod's init, below the pod's; no container has it, as their ids are bare."""
    return host.cgroups.container(plan.cgroup, f"init-{plan.sandbox_id}")


def plan_init(plan: SandboxPlan, host: Host, compiler: Compiler) -> JailPlan:
    """The jail of a pod's init.

    :raises Unavailable: this host cannot filter system calls.
    """
    paths, options = plan.namespaces, plan.spec.security.namespaces
    return JailPlan(
        rootfs="",
        readonly=True,
        dev=False,
        network=paths.network,
        ipc=paths.ipc,
        uts=paths.uts,
        pid="",
        user=paths.user,
        cgroups=directories(host, init_cgroup(plan, host)),
        oom_score_adj=max(_OOM_SCORE_ADJ, host.lowest_oom_score_adj),
        root=root_on_host(paths, options),
        uid=_nobody(options.uid_mappings),
        gid=_nobody(options.gid_mappings),
        landlock=landlock.version(),
        filters=(compiled(reaper_profile(), compiler),),
    )


def _nobody(mappings: Sequence[IdMapping]) -> int:
    """An id that no program of an image has, of those that a user namespace has."""
    return max((one.container_id + one.length - 1 for one in mappings), default=_NOBODY)


def start(plan: JailPlan) -> int:
    """Fork a pod's init; its pid once it waits in its jail. The caller has one thread, and ends soon after.

    :raises ForgeError: it cannot be made. Nothing is left of it.
    """
    before_fork(plan)
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        _reap(plan, tell)
    os.close(tell)
    try:
        wrong = os.read(told, _ERROR_MAX)
    finally:
        os.close(told)
    if wrong:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise InternalError(f"start the init of a pod: {wrong.decode(errors='replace')}")
    return pid


def _reap(plan: JailPlan, tell: int) -> NoReturn:
    """In the child: everything that is nobody else's child in its namespace comes to be its own."""
    try:
        gc.disable()
        # Neither the end of a terminal nor a guest of the pod can end it.
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        try:
            close_all_but((tell,))
            enter(plan)
            lock(plan)
        except Exception as error:
            os.write(tell, str(error).encode()[:_ERROR_MAX] or b"failed")
            raise
        os.close(tell)
        while True:
            signal.sigwait((signal.SIGCHLD,))
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
    finally:
        os._exit(1)
