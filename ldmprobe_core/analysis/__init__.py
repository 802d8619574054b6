"""From scores to intervals, emergence, summary, comparison and report."""
