"""Fitters of probes, one for each kind, such as ridge and logistic."""
