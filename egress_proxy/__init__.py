"""egress-proxy: a forward proxy that decides what a Kubernetes cluster may reach on the internet."""

__version__ = "0.1.0"
