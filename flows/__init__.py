"""The three Prefect flows (study, classify and intervene), and the ``ldmprobe`` command line."""
