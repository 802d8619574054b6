"""Joint scores of the components of vectors and class maps."""
