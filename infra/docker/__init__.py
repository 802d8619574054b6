"""The container image, and a health check that runs only inside its containers."""
