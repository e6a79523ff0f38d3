"""The cluster's side of contracts: a pod that no node would take is refused where it is applied.

Nodes rely on none of it, and static pods never pass it. ``review`` decides, by the code that nodes decide with;
``policy`` writes what an API server can decide by itself.
"""
