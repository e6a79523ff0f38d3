"""What single values of a contract may be. Each takes where it stands and the value, and raises InvalidInput. Pure."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from forgeone_shim.config import checks
from forgeone_shim.contract.model import VOLUME_KINDS, PortRange
from forgeone_shim.errors import InvalidInput
from forgeone_shim.kernel import capabilities

MAX_NUMBER: Final = 2**53 - 1
"""What JSON can say exactly (RFC 8785 section 3.2.2.3)."""

LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
POD: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
GLOB: Final = re.compile(r"[a-zA-Z0-9._:/*\[\]-]{1,255}")
DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
ISSUER: Final = re.compile(r"[a-z0-9]+:\S.*")
MAX_SUBJECT: Final = 255
_MAX_TOKENS: Final = 32
_SUBJECT: Final = re.compile(r"[^\s.*>]+")
MEMORY: Final = re.compile(r"([1-9][0-9]{0,15})(Ki|Mi|Gi|Ti|k|M|G|T)?")
CPU: Final = re.compile(r"([0-9]{1,9})(?:(m)|\.([0-9]{1,3}))?")
_UNITS: Final = {
    None: 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
}


def ports(where: str, item: object) -> PortRange:
    """A port, or ``FIRST-LAST``."""
    text = str(item) if type(item) is int else item
    first, dash, last = text.partition("-") if isinstance(text, str) else ("", "", "")
    numbers = [int(one) if one.isascii() and one.isdigit() and len(one) < 6 else 0 for one in (first, last or first)]
    if (dash and not last) or not 0 < numbers[0] <= numbers[1] < 65536:
        raise InvalidInput(where, f"{item!r} is neither a port nor a range such as 8000-8999")
    return PortRange(numbers[0], numbers[1])


def memory(where: str, value: object) -> int:
    """Bytes of a number, or of a text such as ``64Mi``."""
    parts = MEMORY.fullmatch(str(value)) if isinstance(value, str) or type(value) is int else None
    found = int(parts[1]) * _UNITS[parts[2]] if parts else 0
    if not 0 < found <= MAX_NUMBER:
        raise InvalidInput(where, f"{value!r} is not a number of bytes", fix="for example 67108864, or 64Mi")
    return found


def cpu(where: str, value: object) -> int:
    """Thousandths of a CPU of a number of CPUs, or of a text such as ``500m`` or ``0.5``."""
    parts = CPU.fullmatch(str(value)) if isinstance(value, str) or type(value) is int else None
    found = 0
    if parts:
        found = int(parts[1]) * (1 if parts[2] else 1000) + int((parts[3] or "").ljust(3, "0"))
    if not found:
        raise InvalidInput(where, f"{value!r} is not a number of CPUs", fix="for example 2, '0.5' or 500m")
    return found


def policy(where: str, text: str) -> str:
    """A policy's name."""
    checks.policy_name(where, text)
    return text


def issuer(where: str, text: str) -> str:
    """A signer, as signatures of images name theirs."""
    if not ISSUER.fullmatch(text):
        raise InvalidInput(where, f"{text!r} names no signer", fix="such as key:sha256:HEX or x509:CN=release,O=acme")
    return text


def digest(where: str, text: str) -> str:
    """A digest by SHA-256."""
    if not DIGEST.fullmatch(text):
        raise InvalidInput(where, f"{text!r} is not sha256: and 64 hexadecimal digits")
    return text


def label(where: str, text: str) -> str:
    """A label as in RFC 1123."""
    if not LABEL.fullmatch(text):
        raise InvalidInput(where, f"{text!r} is not 1..63 lower-case letters, digits and dashes")
    return text


def capability(where: str, text: str) -> str:
    """A capability's name, however it is written, without ``CAP_``."""
    name = text.upper().removeprefix("CAP_")
    if f"CAP_{name}" not in capabilities.KNOWN:
        raise InvalidInput(where, f"{text!r} is not a capability")
    return name


def volume(where: str, text: str) -> str:
    """A kind of volumes."""
    if text not in VOLUME_KINDS:
        raise InvalidInput(where, f"{text!r} is not one of {', '.join(VOLUME_KINDS)}")
    return text


def subject(where: str, text: str) -> str:
    """A pattern of subjects of the bus."""
    *words, last = text.split(".")
    if len(text) > MAX_SUBJECT or len(words) >= _MAX_TOKENS:
        raise InvalidInput(where, f"has more than {MAX_SUBJECT} characters, or {_MAX_TOKENS} tokens")
    if not all(word == "*" or _SUBJECT.fullmatch(word) for word in words) or not (
        last in {"*", ">"} or _SUBJECT.fullmatch(last)
    ):
        raise InvalidInput(where, f"{text!r} is not a subject such as shop.orders.* or shop.>")
    return text


def cidr(where: str, text: str) -> str:
    """The same range is always the same text; an address by itself is a range of one."""
    try:
        if "%" in text:
            raise ValueError("it has a zone")
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise InvalidInput(where, f"{text!r} is not a range in CIDR form: {error}") from None


def pod(where: str, text: str) -> str:
    """A pod, or those of a namespace."""
    space, _, name = text.partition("/")
    if not LABEL.fullmatch(space) or not (name == "*" or POD.fullmatch(name)):
        raise InvalidInput(where, f"{text!r} is not NAMESPACE/NAME or NAMESPACE/*")
    return text


def name_glob(where: str, text: str) -> str:
    """A name with ``*`` for any characters."""
    if not POD.fullmatch(text.replace("*", "x")):
        raise InvalidInput(where, f"{text!r} is not a name, or one with *")
    return text
