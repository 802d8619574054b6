"""Analysis of finished runs: summary of the scores, comparison of runs, and report."""
