"""The units of work of a study: plan, prepare, generate, label, accumulate, probe."""
