"""What is asked for: YAML to `Study`, to samples, to units of work."""
