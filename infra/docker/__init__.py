"""The container image, and what runs inside it only."""
