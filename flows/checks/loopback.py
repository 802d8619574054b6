"""Exemption of loopback addresses from HTTP proxies."""

from __future__ import annotations

import os

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def bypass_proxies_for_loopback() -> None:
    """Add loopback addresses to NO_PROXY of this process and of those that it starts.

    Clients of different libraries read the upper or the lower case name: both are set.  A variable
    that is ``*`` (no proxy at all) stays as it is.
    """
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in listed.split(",") if host.strip()]
    if "*" not in hosts:
        hosts += [host for host in LOOPBACK if host not in hosts]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)
