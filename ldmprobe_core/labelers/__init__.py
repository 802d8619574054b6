"""Functions from images to maps or class probabilities."""
