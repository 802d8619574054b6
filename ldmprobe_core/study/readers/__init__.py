"""Readers of a user's files: YAML, prompt lists, pictures and maps."""
