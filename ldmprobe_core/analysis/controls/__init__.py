"""Controls and rivals whose scores are computed when a run is summarised."""
