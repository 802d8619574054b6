"""Edit activations towards a target map, denoise on, and score the images."""
