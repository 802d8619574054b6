"""Scores of edited images, and scores of probes while these images are generated."""
