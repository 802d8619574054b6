"""The platform that studies run on: a local stack, container images, deployments, Kubernetes."""
