"""Policies that come from the cluster: ZTAPolicy objects, watched by a process of its own and kept on the node."""
