"""Core of ldmprobe: linear probes on the activations of latent diffusion models.

This package imports neither Prefect nor the flows: everything in it can be called from a plain
script.
"""
