"""Which cluster, as whom: what kubectl would take.

``--context``, the files of ``KUBECONFIG``, ``~/.kube/config``, or, in a pod, its service account.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import yaml

from hcs_ray.contracts import InputError

_POD_NAMESPACE: Final = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"


def configured(context: str | None) -> tuple[Any, str, str]:
    """The client's configuration, the name of its context, and that context's namespace.

    Raises:
        InputError: no cluster is configured, or not this context.
    """
    from kubernetes.client import Configuration

    configuration = Configuration()
    files = os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())
    if any(Path(file).expanduser().is_file() for file in files.split(os.pathsep) if file):
        return configuration, *_from_files(configuration, files, context)
    if context is None and os.environ.get("KUBERNETES_SERVICE_HOST"):
        return configuration, *_from_pod(configuration)
    raise InputError(
        f"no cluster is configured: there is no {files}; name a kubeconfig in KUBECONFIG, "
        "or use a plain Ray cluster with --address"
    )


def _from_files(configuration: Any, files: str, context: str | None) -> tuple[str, str]:
    from kubernetes.config import ConfigException, kube_config

    library: Any = kube_config  # untyped
    try:
        merged = library.KubeConfigMerger(files).config.value
        contexts = {node.value["name"]: node.value["context"] for node in merged["contexts"]}
        chosen = context or merged.get("current-context")
        if chosen not in contexts:
            asked = f"--context {context}" if context else f"current-context {chosen or 'is not set'}"
            raise InputError(f"{files}: {asked}; it has {', '.join(sorted(contexts)) or 'no context'}")
        library.load_kube_config(files, chosen, configuration, persist_config=False)
    except (ConfigException, yaml.YAMLError, OSError, ValueError, TypeError, KeyError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{files}: {why}; kubectl config view shows what is wrong with it") from None
    return str(chosen), str(contexts[chosen].get("namespace") or "default")


def _from_pod(configuration: Any) -> tuple[str, str]:
    from kubernetes import config

    library: Any = config  # untyped
    try:
        library.load_incluster_config(configuration)
        namespace = os.environ.get("POD_NAMESPACE") or Path(_POD_NAMESPACE).read_text().strip()
    except (config.ConfigException, OSError) as error:
        raise InputError(f"this pod cannot ask its API server: {error}; mount its account's token") from None
    return "in-cluster", namespace
