"""Report of a run, an HTML page with figures."""
