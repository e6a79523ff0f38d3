"""Random CRI sequences by several workers, for long, while forgeoned is killed again and again.

    python -m hack.soak --minutes 30 --workers 8

Needs root. See :mod:`hack.soak.__main__`.
"""
