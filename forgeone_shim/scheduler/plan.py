"""Which engines a pod may get that leaves the choice to the node, and in which order. Pure.

What is demanded (by the contract that holds for the pod, or by its trust label) is met or refused: never is another
engine taken for it. Where nothing is demanded, what the pod needs goes before what the node prefers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from forgeone_shim.config.handlers import DEFAULT_ENGINE, ISOLATING_ENGINE, WASM_ENGINE
from forgeone_shim.errors import FailedPrecondition


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is known of a pod before it has containers.

    ``demanded`` is the contract's ``exec_mode`` and ``label`` its ``trust_label``, as the policies have them, too.
    ``shares`` says what of the host it wants that a guest has of its own, in words; ``modules`` by which annotation it
    says that it has WebAssembly. Empty texts: nothing.
    """

    demanded: str = ""
    label: str = ""
    shares: str = ""
    modules: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """An engine for a pod, and why it is the one, in a clause."""

    engine: str
    reason: str


def plan(
    wanted: Wanted, *, order: Sequence[str], isolate_labels: Sequence[str], unfit: Callable[[str], str]
) -> Iterator[Placement]:
    """At least one, the best first. An engine is asked about when its turn comes.

    :param order: the engines that there may be, the preferred ones first.
    :param unfit: why this pod cannot have an engine here; empty where it can.
    :raises FailedPrecondition: there is none, or what is demanded cannot be had here.
    """
    demanded, reason = _demanded(wanted, isolate_labels)
    if demanded:
        yield _met(demanded, reason, order, unfit)
        return
    preferred, why = _preferred(wanted)
    passed: list[str] = []
    for engine in sorted(order, key=lambda engine: engine != preferred):
        if cannot := unfit(engine):
            passed.append(f"{engine} cannot: {cannot}")
            continue
        told = why if engine == preferred else "first in scheduler.order" if engine == order[0] else "next in order"
        yield Placement(engine, "; ".join((told, *passed)))
    if len(passed) == len(order):
        raise FailedPrecondition(f"no engine of scheduler.order can run it: {'; '.join(passed)}")


def _met(demanded: str, reason: str, order: Sequence[str], unfit: Callable[[str], str]) -> Placement:
    if demanded not in order:
        raise FailedPrecondition(
            f"{reason}, and pods of this handler are never run by {demanded}", fix="add it to scheduler.order"
        )
    if cannot := unfit(demanded):
        raise FailedPrecondition(f"{reason}, and {demanded} cannot run it: {cannot}")
    return Placement(demanded, reason)


def isolated(label: str, isolate_labels: Sequence[str]) -> str:
    """Why a pod of that trust label gets a machine or nothing, in a clause; empty: it may have any engine."""
    if not label or label not in isolate_labels:
        return ""
    return f"trust label {label!r} demands {ISOLATING_ENGINE} (scheduler.isolate_labels)"


def _demanded(wanted: Wanted, isolate_labels: Sequence[str]) -> tuple[str, str]:
    reason = isolated(wanted.label, isolate_labels)
    if not reason:
        return wanted.demanded, f"the contract demands {wanted.demanded} (exec_mode)" if wanted.demanded else ""
    if wanted.demanded not in {"", ISOLATING_ENGINE}:
        raise FailedPrecondition(f"{reason}, and the contract demands {wanted.demanded} (exec_mode)")
    return ISOLATING_ENGINE, reason


_NOTHING: Final = ("", "")


def _preferred(wanted: Wanted) -> tuple[str, str]:
    """By what the pod needs. Programs beside modules are run by the native engine, with all that they may share."""
    if wanted.modules:
        return WASM_ENGINE, f"it says that it has WebAssembly ({wanted.modules})"
    if wanted.shares:
        return DEFAULT_ENGINE, f"it wants {wanted.shares}"
    return _NOTHING
