"""Function that sets NO_PROXY, so that requests to this machine bypass HTTP proxies."""

from __future__ import annotations

import os

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def bypass_proxies_for_loopback() -> None:
    """Add the loopback addresses to NO_PROXY, for this process and the processes that it starts.

    Some HTTP libraries read ``NO_PROXY`` and others read ``no_proxy``, so this function sets both.
    If the list already contains ``*``, which disables proxies for every host, nothing is added.
    """
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in listed.split(",") if host.strip()]
    if "*" not in hosts:
        hosts += [host for host in LOOPBACK if host not in hosts]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)
