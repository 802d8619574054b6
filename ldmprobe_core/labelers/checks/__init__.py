"""Checks of what labelers return, and errors of their code."""
