"""The runtime handlers that pods may ask for now: one for each engine, and those of files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from engines.base import Engine
from forgeone_shim.config.handlers import BUILT_IN_PREFIX, DEFAULT_ENGINE, Handler
from forgeone_shim.errors import InvalidInput


class Handlers:
    """Looked up by every new pod, replaced as a whole by a reload. Thread-safe."""

    def __init__(self, engines: Mapping[str, Engine], files: Sequence[Handler]) -> None:
        """``engines`` are the installed ones.

        :raises InvalidInput: one of ``files`` names another, or what its engine cannot do.
        """
        self._engines = dict(sorted(engines.items()))
        self._known: dict[str, Handler] = {}
        self.plan(files)()

    def plan(self, files: Sequence[Handler]) -> Callable[[], None]:
        """What makes ``files`` the handlers for pods to come.

        :raises InvalidInput: one names an engine that is not installed, or what its engine cannot do; nothing has
            changed then.
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
            try:
                self._engines[handler.engine].check(handler.settings)
            except InvalidInput as error:
                raise InvalidInput(f"handler {handler.name}: {error.field}", error.reason, fix=error.fix) from None
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

    def of(self, engine: str) -> tuple[str, ...]:
        """The names of those whose pods have this engine."""
        return tuple(name for name, one in self._known.items() if name and one.engine == engine)

    def all(self) -> tuple[Handler, ...]:
        """Every one, the default first."""
        return tuple(self._known.values())

    def conf_dirs(self) -> set[str]:
        """The folders of CNI configurations that some of them name."""
        return {one.cni_conf_dir for one in self._known.values() if one.cni_conf_dir}
