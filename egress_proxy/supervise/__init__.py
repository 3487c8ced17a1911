"""Several worker processes that serve as one proxy, and the process that looks after them."""
