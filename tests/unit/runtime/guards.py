"""A guard that allows everything, and remembers what it was asked."""

from __future__ import annotations

from typing import Any, cast

from forgeone_shim.errors import Denied
from forgeone_shim.runtime.guard import Guard


class Lenient:
    """Or denies one point, where ``denies`` names it."""

    def __init__(self, denies: str = "") -> None:
        self.asked: list[str] = []
        self.denies = denies

    def container(self, point: str, _record: object, _deadline: object, _request: object = None) -> None:
        self._ask(point)

    def forward(self, _record: object, _ports: object, _deadline: object) -> None:
        self._ask("port-forward")

    def update(self, _record: object, _asked: object, _deadline: object) -> None:
        self._ask("update")

    def sandbox(self, record: Any, _deadline: object) -> Any:
        self._ask("sandbox")
        return record

    def restore(self, _record: object, _deadline: object) -> None:
        self._ask("restore")

    def create(self, _pod: object, record: Any, *_: object) -> Any:
        self._ask("create")
        return record

    def _ask(self, point: str) -> None:
        self.asked.append(point)
        if point == self.denies:
            raise Denied(f"tests/{point}", "no", "audit:1")


def lenient(denies: str = "") -> Guard:
    """It, as what it stands for."""
    return cast(Guard, Lenient(denies))
