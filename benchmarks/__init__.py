"""What the proxy costs, next to its peers and to a floor in C. README.md explains the method."""
