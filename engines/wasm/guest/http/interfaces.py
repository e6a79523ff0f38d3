"""Everything a server's guest can import."""

from __future__ import annotations

from typing import Final

from engines.wasm.guest.http import client, kinds, wasi_cli, wasi_filesystem, wasi_http, wasi_io
from engines.wasm.guest.http.linking import Interfaces

SERVER: Final = Interfaces(
    {
        **wasi_io.FUNCTIONS,
        **wasi_cli.FUNCTIONS,
        **wasi_filesystem.FUNCTIONS,
        **wasi_http.FUNCTIONS,
        **client.FUNCTIONS,
    },
    kinds.RESOURCES,
)
