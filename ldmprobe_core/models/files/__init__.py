"""Checks of a model folder's files, which run before any weights are loaded."""
