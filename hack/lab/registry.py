"""Debian's ``docker-registry`` on a free loopback port, plain HTTP, its data in a directory of the caller's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import IO

_LISTENING = re.compile(r"listening on (127\.0\.0\.1:\d+)")
_START_SECONDS = 30.0
_CONFIG = """\
version: 0.1
log: {{level: info, formatter: text, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {data}}}
  delete: {{enabled: true}}
http:
  addr: 127.0.0.1:{port}
"""


class Registry:
    """A running registry. A context manager: leaving it stops the process; the data stays for the caller to remove."""

    def __init__(self, directory: Path, port: int = 0) -> None:
        program = shutil.which("docker-registry")
        if program is None:
            raise FileNotFoundError("docker-registry is not installed: apt-get install docker-registry")
        directory.mkdir(parents=True, exist_ok=True)
        config = directory / "registry.yml"
        config.write_text(_CONFIG.format(data=directory / "data", port=port))
        self.log = directory / "registry.log"
        self._address = ""
        self._announced = threading.Event()
        self._process = subprocess.Popen(
            [program, "serve", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # No settings from outside, and no trace exporter looking for a collector.
            env={"PATH": os.environ.get("PATH", ""), "OTEL_TRACES_EXPORTER": "none"},
        )
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,), daemon=True)
        self._reader.start()
        if not self._announced.wait(_START_SECONDS) or not self._address:
            self.stop()
            raise RuntimeError(f"docker-registry did not start: {self.log.read_text()[-2000:]}")

    @property
    def address(self) -> str:
        """``127.0.0.1:<port>``, as an image reference starts."""
        return self._address

    def stop(self) -> None:
        """Stop the process; again is no error."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _read(self, stream: IO[str]) -> None:
        with stream, self.log.open("w") as log:
            for line in stream:
                log.write(line)
                log.flush()
                found = _LISTENING.search(line)
                if found and not self._address:
                    self._address = found[1]
                    self._announced.set()
        self._announced.set()
