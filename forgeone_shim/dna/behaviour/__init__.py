"""What a container does, beside what it is: which system calls it makes, in which order they came first, how often.

:mod:`program` is what the kernel runs at each call, :mod:`recorder` loads it while somebody is watched, :mod:`profile`
is what was seen of one container, :mod:`baseline` what is usual for an image, :mod:`drift` how the two differ, and
:mod:`seccomp` makes a filter of what is usual.
"""
