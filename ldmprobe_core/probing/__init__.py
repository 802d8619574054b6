"""Fitting and scoring of probes on arrays in memory, without disk, network or diffusion model."""
