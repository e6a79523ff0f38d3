"""The pod's volumes, served to its machine over FUSE by a process of their own.

The keeper starts the server with ``engines.microvm.shares.launch.start(port, sandbox_id)``, which forks, confines the
child and returns a :class:`engines.microvm.shares.client.FileServer` to tell it of volumes. ``port`` is the connected
socket of the share port; it stays the caller's, who closes it. A volume is ``/NUMBER`` below the
root of the guest's one FUSE mount, a directory or a file.
"""
