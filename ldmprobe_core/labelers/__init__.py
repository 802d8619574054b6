"""Labelers: functions that compute a map of a property, or class probabilities, from images."""
