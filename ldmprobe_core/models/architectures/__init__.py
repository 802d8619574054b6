"""Descriptions of the diffusers pipeline classes whose models can be probed."""
