"""Descriptions of architectures: calls, guidance, latents and settings of a pipeline class."""
