"""Trial of the container images on a Docker engine: ``python -m infra.containers``."""
