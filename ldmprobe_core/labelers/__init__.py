"""From an image to a map or to class probabilities."""
