"""Measures of an intervention: on edited images, and on the activations of their generation."""
