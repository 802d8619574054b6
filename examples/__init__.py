"""Short scripts that use the public API."""
