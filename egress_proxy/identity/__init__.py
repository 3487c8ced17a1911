"""Who is asking: what a client says about itself, and whether that is so."""
