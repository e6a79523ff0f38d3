"""A record of each call that a core module makes to its host, written by WebAssembly and read by whoever has the file.

:mod:`shim` generates the two modules that stand between a guest and its imports, :mod:`ring` is the file they write
to, :mod:`calls` knows the interfaces whose arguments can be told in words. Nothing here imports wasmtime.
"""
