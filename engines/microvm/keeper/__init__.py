"""The keeper: one process a pod, which has its machine and supervises all its containers."""
