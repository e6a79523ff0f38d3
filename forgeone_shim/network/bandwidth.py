"""What a pod may receive and send a second: the annotations of Kubernetes, on whichever network the pod is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from forgeone_shim.errors import InvalidInput
from forgeone_shim.network.cni.quantity import parse_quantity

INGRESS: Final = "kubernetes.io/ingress-bandwidth"
"""pod; whoever writes the pod

Bits a second the pod may receive and send, `10M`, between 1k and 1P: on the built-in network, and by the CNI plugin
that declares the capability `bandwidth`.
"""
EGRESS: Final = "kubernetes.io/egress-bandwidth"

# Bounds of Kubernetes' own validation, in bits a second.
_SLOWEST, _FASTEST = 1000, 10**15


@dataclass(frozen=True, slots=True)
class Limits:
    """Bits a second that a pod may receive (``ingress``) and send (``egress``); ``None`` is as many as there are."""

    ingress: int | None = None
    egress: int | None = None

    def __bool__(self) -> bool:
        return self.ingress is not None or self.egress is not None


UNLIMITED: Final = Limits()


def plan_limits(annotations: Mapping[str, str]) -> Limits:
    """The limits that a pod's annotations ask for.

    :raises InvalidInput: one of them is no rate a pod can have.
    """
    if INGRESS not in annotations and EGRESS not in annotations:
        return UNLIMITED
    return Limits(_rate(annotations, INGRESS), _rate(annotations, EGRESS))


def _rate(annotations: Mapping[str, str], annotation: str) -> int | None:
    text = annotations.get(annotation)
    if text is None:
        return None
    field = f"annotations[{annotation!r}]"
    try:
        rate = parse_quantity(text)
    except ValueError as error:
        raise InvalidInput(field, str(error)) from None
    if not _SLOWEST <= rate <= _FASTEST:
        raise InvalidInput(field, f"{text!r} is not between 1k and 1P bits a second")
    return rate
