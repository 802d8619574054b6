"""Loading of diffusers pipelines, sampling of images, and capture of activations."""
