"""The story, in Prefect."""
