"""Parts of the ``ldmprobe`` command: its tables, its errors, and the command on interventions."""
