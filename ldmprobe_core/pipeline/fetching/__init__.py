"""Download of a study's model, labelers and prompt files."""
