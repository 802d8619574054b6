"""Statistical inference from scores: intervals, emergence steps, and the choice of layers."""
