"""Kinds of probes: how each is fitted."""
