"""Training: the loop, what it needs to stop and go on, and what it tells meanwhile."""
