"""Parts of the verification of a run: what must exist, and the recorded checksums."""
