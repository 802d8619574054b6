"""Loading of a diffusers pipeline, sampling from it, and capture of its activations."""
