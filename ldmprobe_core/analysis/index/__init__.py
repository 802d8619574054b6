"""Page that lists all runs of a store and sets them side by side."""
