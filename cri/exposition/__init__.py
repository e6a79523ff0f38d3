"""What Prometheus reads of this node: the node's own metrics, and those of its containers."""
