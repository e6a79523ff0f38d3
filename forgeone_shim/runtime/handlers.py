"""The runtime handlers that pods may ask for now: one for each engine, and those of files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from forgeone_shim.config.handlers import BUILT_IN_PREFIX, DEFAULT_ENGINE, Handler
from forgeone_shim.errors import InvalidInput


class Handlers:
    """Looked up by every new pod, replaced as a whole by a reload. Thread-safe."""

    def __init__(self, engines: Collection[str], files: Sequence[Handler]) -> None:
        """``engines`` are the installed ones.

        :raises InvalidInput: one of ``files`` names another.
        """
        self._engines = tuple(sorted(engines))
        self._known: dict[str, Handler] = {}
        self.plan(files)()

    def plan(self, files: Sequence[Handler]) -> Callable[[], None]:
        """What makes ``files`` the handlers for pods to come.

        :raises InvalidInput: one names an engine that is not installed; nothing has changed then.
        """
        known = {
            BUILT_IN_PREFIX + engine: Handler(name=BUILT_IN_PREFIX + engine, engine=engine) for engine in self._engines
        }
        if DEFAULT_ENGINE in self._engines:
            known = {"": Handler()} | known
        for handler in files:
            if handler.engine not in self._engines:
                raise InvalidInput(
                    f"handler {handler.name}: engine",
                    f"no engine {handler.engine!r} is installed",
                    fix=f"one of: {', '.join(self._engines)}",
                )
            known[handler.name] = handler

        def take() -> None:
            self._known = known

        return take

    def find(self, name: str) -> Handler:
        """The handler a pod asks for; InvalidInput where there is none."""
        found = self._known.get(name)
        if found is None:
            known = ", ".join(filter(None, self._known))
            raise InvalidInput("runtime_handler", f"there is no handler {name!r}", fix=f"one of: {known}")
        return found

    def all(self) -> tuple[Handler, ...]:
        """Every one, the default first."""
        return tuple(self._known.values())
