"""Reader of the file that describes a study's Dask cluster on Kubernetes."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.readers.yaml_files import read_yaml
from ldmprobe_core.study.sections import Execution


def cluster_spec(execution: Execution) -> dict[str, Any]:
    """Return the DaskCluster resource for dask-kubernetes, with the study's number of workers.

    The name of the resource gets a random suffix.  Otherwise two flows would share one cluster, and
    the flow that ends first would delete it.

    Raises:
        UserError: the file cannot be read, is not strict YAML, or describes another resource.
    """
    try:
        data = Path(str(execution.cluster)).read_bytes()
        spec = read_yaml(data, f"execution.cluster: {execution.cluster}", kubernetes=True)
        if spec["kind"] != "DaskCluster":
            raise KeyError("kind")
        spec["spec"]["worker"]["replicas"] = execution.workers
        name = f"{spec['metadata']['name']}-{uuid.uuid4().hex[:8]}"
        spec["metadata"]["name"] = name
        spec["spec"]["scheduler"]["service"]["selector"]["dask.org/cluster-name"] = name
    except (OSError, KeyError, TypeError):
        raise UserError(
            f"execution.cluster is {execution.cluster!r:.80}, which is no readable YAML file of "
            "one DaskCluster resource. Fix: give such a file, for example "
            "infra/kubernetes/dask-cluster.yaml"
        ) from None
    return spec
