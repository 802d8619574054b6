"""A trial of the containers on a real engine, by ``python -m infra.containers``."""
