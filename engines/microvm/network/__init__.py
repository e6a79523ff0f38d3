"""The guest owns its pod's address: a tap in the pod's network namespace, and everything sent to and fro.

``tap`` is asked before the machine starts, ``connect`` once the pod is attached to its network.
"""

from __future__ import annotations

from engines.microvm.network.pod import connect, pod_interface, redirect, tap

__all__ = ["connect", "pod_interface", "redirect", "tap"]
