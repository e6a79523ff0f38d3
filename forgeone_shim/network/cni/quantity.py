"""Kubernetes' quantities: ``10M``, ``1.5Gi``, ``3e6`` (k8s.io/apimachinery/pkg/api/resource)."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

_QUANTITY: Final = re.compile(r"([+-]?)([0-9]+\.?[0-9]*|\.[0-9]+)(?:([KMGTPE]i|[numkMGTPE])|[eE]([+-]?[0-9]{1,4}))?")
_LENGTH_MAX: Final = 64
_UNITS: Final = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY: Final = "KMGTPE"


def parse_quantity(text: str) -> int:
    """Its value, rounded up to a whole number as Kubernetes does.

    :raises ValueError: it is none.
    """
    match = _QUANTITY.fullmatch(text) if len(text) <= _LENGTH_MAX else None
    if match is None:
        raise ValueError(f"{text[:_LENGTH_MAX]!r} is not a quantity")
    sign, digits, unit, exponent = match.groups()
    value = Fraction(digits.rstrip(".") if digits[0] != "." else f"0{digits}")
    if exponent is not None:
        value *= Fraction(10) ** int(exponent)
    elif unit and unit.endswith("i"):
        value *= 1 << 10 * (_BINARY.index(unit[0]) + 1)
    elif unit:
        value *= Fraction(10) ** _UNITS[unit]
    whole = -(-value.numerator // value.denominator)
    return -whole if sign == "-" else whole
