"""Analysis of a run's scores: intervals, emergence, summary, comparison and report."""
