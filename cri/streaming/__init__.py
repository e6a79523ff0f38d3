"""Exec, attach and port-forward for clients: protocols without I/O, and the sessions that move their bytes."""
