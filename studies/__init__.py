"""Ready studies, as YAML files; ``ldmprobe run NAME`` finds them by name."""
