"""Planning of a study: checks of its settings and inputs, and estimates of its size."""
