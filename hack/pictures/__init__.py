"""Pictures of ``forge`` for the documents: real commands on a node of their own, and what they print.

``make pictures``, as root. Ids, times and addresses differ each time, so no test compares them.
"""
