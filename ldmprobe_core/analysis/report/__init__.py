"""Report of a run: page and figures."""
