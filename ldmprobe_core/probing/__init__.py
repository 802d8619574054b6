"""Fits and scores probes on in-memory arrays; uses no disk, network or diffusion pipeline."""
