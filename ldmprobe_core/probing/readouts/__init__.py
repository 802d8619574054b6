"""Readouts of activations that need no training: attention to a word, and nearest neighbours."""

from ldmprobe_core.probing.readouts.correspondence import nearest_tokens, pck
from ldmprobe_core.probing.readouts.words import word_map, word_positions

__all__ = ["nearest_tokens", "pck", "word_map", "word_positions"]
