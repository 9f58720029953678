"""What this machine is, and what of a model lies on its GPU."""
