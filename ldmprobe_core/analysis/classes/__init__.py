"""Class probabilities of a run's step images and final images, and of photographs."""
