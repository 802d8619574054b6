"""Measures of the embedded model's quality: judge, Fréchet distance, straight edges."""
