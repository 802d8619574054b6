"""Generalization of probes to other steps, other categories and fewer training images."""
