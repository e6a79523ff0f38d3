"""A Kubernetes cluster in containers of Docker whose nodes run ForgeOne: ``python -m hack.kind --help``."""
