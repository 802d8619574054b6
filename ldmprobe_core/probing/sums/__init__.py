"""Sums of products of activations and labels, on the host or on the device of the models."""
