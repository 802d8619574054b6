"""Statistics of a run in independent parts, which two processes can share."""
