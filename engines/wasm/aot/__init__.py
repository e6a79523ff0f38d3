"""Modules compiled ahead of time: :mod:`target` says for what, :mod:`cache` keeps them, :mod:`helper` makes them.

Nothing here but the helper, which is a process of its own, imports wasmtime.
"""
