"""Filters of system calls, compiled on the host for the guest's kernel, which is of the same architecture."""

from __future__ import annotations

import base64
import functools
from dataclasses import dataclass
from typing import Any, Final

from engines.base import ContainerPlan, HandlerSettings, ProfileType
from engines.microvm import plans
from engines.microvm.settings import Settings
from engines.native import runtime_default, seccomp
from engines.native.runtime_default import Template
from engines.native.spec import RuntimeDefault
from forgeone_shim.errors import FailedPrecondition, InvalidInput, Unavailable
from forgeone_shim.kernel.bpf import Compiler

_FIELD: Final = "linux.security_context.seccomp"
_INSTALL: Final = "apt-get install libseccomp2"
_PROFILES: Final = 16
# seccomp(2). A program that is to be executed has one thread, so that TSYNC asks for nothing.
_FLAGS: Final = {"SECCOMP_FILTER_FLAG_TSYNC": 0, "SECCOMP_FILTER_FLAG_LOG": 2, "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4}


@dataclass(frozen=True, slots=True)
class Filter:
    """Classic BPF, and flags of seccomp(2); no instructions: no filter."""

    program: bytes = b""
    flags: int = 0


class Filters:
    """Thread-safe."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler
        self._parsed = functools.lru_cache(_PROFILES)(runtime_default.parse)

    def check(self, settings: HandlerSettings) -> None:
        """:raises InvalidInput: the profile of a handler cannot be used."""
        if settings.seccomp:
            runtime_default.checked("seccomp_profile", settings.seccomp, self._compiler)

    def default(self, settings: Settings) -> Template | None:
        """What RuntimeDefault means by the node's configuration; ``None``: what is built in."""
        path, key = settings.seccomp_default_profile, "native.seccomp_default_profile"
        if not path:
            return None
        return runtime_default.checked(key, runtime_default.read(key, path), self._compiler)

    def of(self, plan: ContainerPlan, root: str, default: Template | None) -> Filter:
        """The container's; Localhost profiles are files of the host's below ``root``, empty: anywhere.

        :raises InvalidInput: the profile cannot be used.
        :raises Unavailable: there is nothing to compile it with.
        """
        security = plan.spec.security
        if security.privileged:
            return Filter()
        found = seccomp.choose(security.seccomp, plans.held(security), root, self._default(plan.handler, default))
        if found is None:
            return Filter()
        profile: dict[str, Any] = dict(found)
        flags = 0
        for name in profile.pop("flags", None) or ():
            if name not in _FLAGS:
                raise InvalidInput(_FIELD, f"flag {name!r} cannot be had")
            flags |= _FLAGS[name]
        compiled = self._compiler.compile(profile)
        if compiled is not None:
            return Filter(base64.b64decode(compiled), flags)
        if not self._compiler.usable:
            raise Unavailable("the system calls of a container cannot be filtered: no libseccomp", fix=_INSTALL)
        localhost = security.seccomp is not None and security.seccomp.type is ProfileType.LOCALHOST
        raise InvalidInput(f"{_FIELD}.localhost_ref" if localhost else _FIELD, "libseccomp makes no filter of it")

    def _default(self, handler: HandlerSettings, default: Template | None) -> RuntimeDefault:
        try:
            template = self._parsed(handler.seccomp) if handler.seccomp else default
        except ValueError as error:
            raise FailedPrecondition(f"the pod's handler has a seccomp profile that cannot be used: {error}") from error
        return seccomp.default_profile if template is None else template.profile
