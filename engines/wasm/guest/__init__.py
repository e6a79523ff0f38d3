"""A WebAssembly guest in a process of its own: planned (:mod:`plan`), loaded before a fork (:mod:`loading`), made ready
and run after it (:mod:`running`).

This package imports nothing by itself, so that the daemon can make plans without wasmtime.
"""
