"""The kernel's command lines.

Each word has been measured; docs/microvm.md says what it gives. Words of the one accelerator that would cost the other
something are apart.
"""

from __future__ import annotations

from typing import Final

from engines.microvm.boot.manifest import Lines

# A guest that panics ends at once, and a machine that resets has ended: the monitor does not start it anew.
_COMMON: Final = ("quiet", "panic=-1", "reboot=t", "cryptomgr.notests")
# What a guest does not need before its first process, and what costs an emulated processor most. An emulated processor
# does not speculate, so there is nothing for mitigations to mitigate.
_TCG: Final = (
    "no_timer_check",
    "mitigations=off",
    "initcall_blacklist=init_kprobe_trace,event_trace_init,tracer_init_tracefs,init_trace_printk,trace_eval_init,"
    "crypto_kdf108_init,init_ima,init_evm",
)

LINES: Final = Lines(kvm=" ".join(_COMMON), tcg=" ".join((*_COMMON, *_TCG)))
