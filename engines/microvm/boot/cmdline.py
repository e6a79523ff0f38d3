"""The kernel's command lines. What is not here was measured and gave nothing (docs/microvm.md)."""

from __future__ import annotations

from typing import Final

from engines.microvm.boot.manifest import Lines

# A guest that panics ends at once, and a machine that resets has ended: the monitor does not start it anew.
_COMMON: Final = ("quiet", "panic=-1", "reboot=t", "cryptomgr.notests")
# The guest would compare the counter with ticks, which come late on a busy host, call it unstable, and from then on
# count those ticks instead.
_CLOCK: Final = "tsc=reliable"
# What a guest has no use for, and what costs an emulated processor most: tracing and integrity measurement. With KVM it
# costs next to nothing, and somebody may want to trace.
_TCG: Final = (
    "initcall_blacklist=init_kprobe_trace,event_trace_init,tracer_init_tracefs,init_trace_printk,trace_eval_init,"
    "crypto_kdf108_init,init_ima,init_evm",
    _CLOCK,
)

LINES: Final = Lines(kvm=" ".join(_COMMON), tcg=" ".join((*_COMMON, *_TCG)))
