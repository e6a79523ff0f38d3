"""Jails for guests: what a process joins, sees and may do, and that there is no way back.

In the daemon: :func:`gather` reads the host, :func:`plan_jail` decides. In the guest's parent: :func:`before_fork`.
In the guest: :func:`enter`, then what needs more system calls than a guest has, then :func:`lock`; or instead of that
:func:`become`, what is to be opened as the guest's user, and :func:`restrict`. One more process of such a jail:
:func:`enter_processes` in its parent, then :func:`join` and :func:`lock`.
"""

from engines.wasm.jail.enter import before_fork, enter, enter_processes, join
from engines.wasm.jail.lock import become, lock, restrict
from engines.wasm.jail.plan import JailPlan
from engines.wasm.jail.planning import Gathered, gather, plan_jail, problems

__all__ = [
    "Gathered",
    "JailPlan",
    "become",
    "before_fork",
    "enter",
    "enter_processes",
    "gather",
    "join",
    "lock",
    "plan_jail",
    "problems",
    "restrict",
]
