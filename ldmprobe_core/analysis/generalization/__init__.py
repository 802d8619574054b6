"""Tests of how far probes generalize: over steps, categories and numbers of training images."""
