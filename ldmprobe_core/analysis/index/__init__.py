"""Web page that lists and compares all runs of a store."""
