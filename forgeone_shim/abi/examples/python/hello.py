"""A component: componentize-py -d wit -w hello componentize hello -o hello.wasm

``wit/`` has ``hello.wit`` beside this file, ForgeOne's packages below ``wit/deps`` (each in a directory of its own) and
WASI's.
"""

from wit_world import exports
from wit_world.imports import container, log, slice


class Run(exports.Run):
    """``wasi:cli/run``."""

    def run(self) -> None:
        """Say who this is."""
        me = container.identify()
        print(f"container {me.id[:12]} ({me.name}) is {container.get_state().name.lower()}")
        for step in container.history():
            print(step.before.name, "->", step.after.name)
        slice.give_up()
        log.log(log.Level.INFO, "example", f"peak memory: {container.get_usage().resident_peak} bytes")
