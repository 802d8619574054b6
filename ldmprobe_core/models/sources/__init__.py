"""Sources of a study's model: a folder, a single file, or a pipeline object of this process."""
