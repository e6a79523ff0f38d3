"""The one error tree of ForgeOne.

Each error carries what was asked, what was found and what to do about it. Rooms raise these; ``cri/server.py`` alone
maps :attr:`ForgeError.kind` to a gRPC status code.
"""

from __future__ import annotations

import errno
from enum import StrEnum


class Kind(StrEnum):
    """What class of failure this is; each member has exactly one gRPC code."""

    INVALID = "invalid"
    NOT_FOUND = "not-found"
    EXISTS = "exists"
    PRECONDITION = "precondition"
    DENIED = "denied"
    UNTRUSTED = "untrusted"
    DEADLINE = "deadline"
    EXHAUSTED = "exhausted"
    UNAVAILABLE = "unavailable"
    UNIMPLEMENTED = "unimplemented"
    INTERNAL = "internal"


class ForgeError(Exception):
    """Base of every error that reaches a caller.

    :param what: one sentence: what was asked and what was found.
    :param fix: what the caller or the operator can do about it, if anything.
    """

    kind: Kind = Kind.INTERNAL

    def __init__(self, what: str, *, fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.what} ({self.fix})" if self.fix else self.what


class InvalidInput(ForgeError):
    """The request names a value that cannot be used; ``field`` is its path in the request."""

    kind = Kind.INVALID

    def __init__(self, field: str, reason: str, *, fix: str = "") -> None:
        super().__init__(f"{field}: {reason}", fix=fix)
        self.field = field
        self.reason = reason


class NotFound(ForgeError):
    """Nothing of that id or name is known here, or ``where``."""

    kind = Kind.NOT_FOUND

    def __init__(self, noun: str, name: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(f"{noun} {name!r} not found" + (f" on {where}" if where else ""), fix=fix)
        self.noun = noun
        self.name = name
        self.where = where


class AlreadyExists(ForgeError):
    """The name is taken by something that differs from what was asked."""

    kind = Kind.EXISTS


class FailedPrecondition(ForgeError):
    """The thing exists but is not in a state that allows the request."""

    kind = Kind.PRECONDITION


class PermissionDenied(ForgeError):
    """Credentials or policy refuse the request."""

    kind = Kind.DENIED


class UntrustedImage(PermissionDenied):
    """Nobody who is trusted stands behind an image.

    A kubelet knows it by the word in front (k8s.io/cri-api/pkg/errors), which it looks for only where the gRPC code
    says nothing itself.
    """

    kind = Kind.UNTRUSTED

    def __init__(self, what: str, *, fix: str = "") -> None:
        super().__init__(f"SignatureValidationFailed: {what}", fix=fix)
        self.reason = what


class Denied(ForgeError):
    """A contract, or a policy of this node, does not allow the request.

    :param rule: what denied it: ``POLICY/RULE``, or the field of the contract.
    :param reason: one clause: what was found, and what is allowed.
    :param entry: where the audit log tells of it (``audit:17``).
    :param starts: it was to bring something to life (FAILED_PRECONDITION), and not to reach into what lives.
    """

    kind = Kind.DENIED

    def __init__(self, rule: str, reason: str, entry: str, *, starts: bool = False, fix: str = "") -> None:
        super().__init__(f"denied by {rule}: {reason} [{entry}]", fix=fix)
        self.rule = rule
        self.reason = reason
        self.entry = entry
        if starts:
            self.kind = Kind.PRECONDITION


class DeadlineExceeded(ForgeError):
    """The caller's deadline passed; what had been done was undone."""

    kind = Kind.DEADLINE


class ResourceExhausted(ForgeError):
    """A finite thing (addresses, disk, message size) ran out."""

    kind = Kind.EXHAUSTED


class Unavailable(ForgeError):
    """Something this depends on does not answer now; a retry may succeed."""

    kind = Kind.UNAVAILABLE


class Unimplemented(ForgeError):
    """ForgeOne, or this engine, does not do that."""

    kind = Kind.UNIMPLEMENTED


class InternalError(ForgeError):
    """A kernel call or a program ForgeOne runs failed in a way the caller did not cause."""

    kind = Kind.INTERNAL


def syscall_error(call: str, path: object, error: OSError) -> InternalError | ResourceExhausted:
    """Says which call failed on which path: a full disk is the operator's to mend, all else is not expected."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return (ResourceExhausted if full else InternalError)(f"{call} {path}: {error.strerror or error}")
