"""The runtime handlers that pods may ask for now: one for each engine, one that chooses, and those of files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from engines.base import Engine
from forgeone_shim.config.handlers import AUTO_ENGINE, BUILT_IN_PREFIX, DEFAULT_ENGINE, Handler
from forgeone_shim.config.model import SchedulerConfig
from forgeone_shim.contract.model import EXEC_MODES
from forgeone_shim.errors import InvalidInput


class Handlers:
    """Looked up by every new pod, replaced as a whole by a reload. Thread-safe."""

    def __init__(
        self, engines: Mapping[str, Engine], files: Sequence[Handler], order: Sequence[str] = SchedulerConfig().order
    ) -> None:
        """``engines`` are the installed ones, ``order`` those that are chosen among.

        :raises InvalidInput: one of ``files`` names another, or what its engine cannot do; ``order`` names none.
        """
        if AUTO_ENGINE in engines:
            raise InvalidInput("engines", f"{AUTO_ENGINE!r} is installed, and means that an engine is to be chosen")
        self._engines = dict(sorted(engines.items()))
        self._known: dict[str, Handler] = {}
        self.plan(files, order)()

    def plan(self, files: Sequence[Handler], order: Sequence[str]) -> Callable[[], None]:
        """What makes ``files`` the handlers for pods to come, and ``order`` what those with no engine choose among.

        :raises InvalidInput: one names an engine that is not installed, or what its engine cannot do, or ``order``
            what is no engine; nothing has changed then.
        """
        for engine in order:
            # One of ForgeOne's own may be left out of an installation; any other name is a slip.
            if engine not in self._engines and engine not in EXEC_MODES:
                raise InvalidInput(
                    "scheduler.order", f"there is no engine {engine!r}", fix=f"one of: {', '.join(self._engines)}"
                )
        known = {
            BUILT_IN_PREFIX + engine: Handler(name=BUILT_IN_PREFIX + engine, engine=engine) for engine in self._engines
        }
        name = BUILT_IN_PREFIX + AUTO_ENGINE
        known = dict(sorted((known | {name: Handler(name=name, engine=AUTO_ENGINE)}).items()))
        if DEFAULT_ENGINE in self._engines:
            known = {"": Handler()} | known
        for handler in files:
            for engine in self._may_have(handler, order):
                try:
                    self._engines[engine].check(handler.settings)
                except InvalidInput as error:
                    raise InvalidInput(f"handler {handler.name}: {error.field}", error.reason, fix=error.fix) from None
            known[handler.name] = handler

        def take() -> None:
            self._known = known

        return take

    def _may_have(self, handler: Handler, order: Sequence[str]) -> list[str]:
        """The engines that its pods may have."""
        if handler.chooses:
            return [engine for engine in order if engine in self._engines]
        if handler.engine in self._engines:
            return [handler.engine]
        raise InvalidInput(
            f"handler {handler.name}: engine",
            f"no engine {handler.engine!r} is installed",
            fix=f"one of: {', '.join((*self._engines, AUTO_ENGINE))}",
        )

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
