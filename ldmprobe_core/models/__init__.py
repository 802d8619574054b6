"""One diffusers pipeline: load it, sample from it, capture and edit its activations."""
