"""Description of an experiment: reader of its YAML file, its sections, samples and batches."""
