"""Arrays in, probes and scores out; no disk, no network, no pipeline."""
