"""The agent in the machine, in C; :mod:`engines.microvm.boot.agent` compiles it."""
