"""The guest owns its pod's address: a tap in the pod's network namespace, and everything sent to and fro.

``tap``, ``pod_interface`` and ``redirect`` are asked in this order: before the machine starts, once the pod is
attached to its network, and before the guest is told its interface.
"""

from __future__ import annotations

from engines.microvm.network.pod import pod_interface, redirect, tap

__all__ = ["pod_interface", "redirect", "tap"]
