"""Sources of a study's model: a folder of weights, or a pipeline object of this process."""
