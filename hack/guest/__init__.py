"""A Debian guest with systemd and unified cgroups (v2), booted to run the end-to-end tests inside: ``make e2e-v2``."""
