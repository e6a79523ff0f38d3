"""A component that exports ``wasi:http/incoming-handler``, served: HTTP/1.1 on one side, WASI 0.2 on the other.

wasmtime's C API has no way to make an ``incoming-request``, so the host's side of ``wasi:http`` is here, and with it
every interface that shares a resource with it: streams and pollables, the standard streams, clocks, files. Nothing of
wasmtime's own WASI runs in such a process, so it has none of its threads.

From the wire inwards: :mod:`wire` (messages, without I/O), :mod:`transport` and :mod:`bodies` (bytes of a connection),
:mod:`server` (connections, workers, time limits), :mod:`exchange` (one request: its instance and its answer),
:mod:`linking` and :mod:`cells` (calls between the guest and the ``wasi_*`` modules, which are the interfaces).
"""
