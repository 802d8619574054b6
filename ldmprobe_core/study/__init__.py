"""Description of an experiment: reads a study from YAML, then makes its samples and batches."""
