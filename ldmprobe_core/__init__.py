"""The science of ldmprobe: what a latent diffusion model knows, where, and how early.

This package imports neither Prefect nor the flows: everything in it can be called from a plain
script.
"""
