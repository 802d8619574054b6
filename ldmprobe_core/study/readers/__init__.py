"""Readers of a user's files: YAML, prompt files, source images and maps."""
