"""Description of an experiment: its YAML reader, sections, samples and batches."""
