"""Controls, and labelers as competitors of the probes, scored when a run is summarised."""
