"""Class probabilities of a run: over its steps, and of photographs beside them."""
