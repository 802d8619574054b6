"""Files of a model folder, read and checked before any weights are loaded."""
