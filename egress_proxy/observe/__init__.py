"""What the proxy tells about itself: audit lines, events and metrics."""
