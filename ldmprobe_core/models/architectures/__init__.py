"""What is specific to an architecture: how it is called, guided, decoded."""
