"""What the proxy decides: pure values and functions, without I/O, clock or randomness."""
