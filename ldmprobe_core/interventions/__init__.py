"""Interventions: edit activations towards a target map, finish denoising, score the images."""
