"""A component whose exported function a container runs as ``/hello.wasm#hello``.

``componentize-py -d wit -w guest componentize hello -o hello.wasm``, where ``wit/`` holds ``hello.wit``, which is here,
and those of ForgeOne, each in a directory of its own: ``wit/deps/introspect/introspect.wit`` and so on.
"""

import wit_world
from wit_world.imports import container, log, slice


class WitWorld(wit_world.WitWorld):
    """What the component exports."""

    def hello(self) -> str:
        """Say who this is."""
        me = container.identify()
        lines = [f"container {me.id[:12]} ({me.name}) is {container.get_state().name.lower()}"]
        lines += [f"{step.before.name} -> {step.after.name}" for step in container.history()]
        slice.give_up()
        log.log(log.Level.INFO, "example", f"peak memory: {container.get_usage().resident_peak} bytes")
        return "\n".join(lines)
