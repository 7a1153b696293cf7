"""Empties the Ray node of this pod before the pod ends. It is the preStop hook of a worker.

    python -m serve.drain --limit-s 330

Serve starts the node's replicas elsewhere, and lets the replicas here finish what they have. Without this, the edits on
a pod that is evicted are lost with it, and are computed again elsewhere. The environment variable RAY_ADDRESS, which
KubeRay sets, says where Ray's head is.
"""

import argparse
import os
import socket
import subprocess
import sys
import time
from typing import Any

from ray.util.state import list_actors, list_nodes
from ray.util.state.exception import RayStateApiException

POLL_S = 1.0
# How long to wait for an answer of the head. If the head goes as well, there is nothing to drain for.
TIMEOUT_S = 20


def drain(address: str, node_ip: str, limit_s: float) -> int:
    """Drain the node and wait until it has no replicas, for at most `limit_s`; return how many are left.

    address: host:port of Ray's head. Raises RuntimeError if the head does not answer, or does not know the node.
    """
    end = time.monotonic() + limit_s
    try:
        nodes = list_nodes(address, [("node_ip", "=", node_ip), ("state", "=", "ALIVE")], timeout=TIMEOUT_S)
        if not nodes:
            raise RuntimeError(f"{address}: knows no node {node_ip}")
        node = nodes[0].node_id
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "its pod is to end"]
        remaining = ["--deadline-remaining-seconds", str(round(limit_s))]
        command = ["ray", "drain-node", "--address", address, "--node-id", node, *reason, *remaining]
        subprocess.run(command, check=True, timeout=TIMEOUT_S)
        while (num_left := num_replicas(address, node)) and time.monotonic() < end:
            time.sleep(POLL_S)
    except (RayStateApiException, OSError, subprocess.SubprocessError) as error:
        raise RuntimeError(f"{address}: {error}") from error
    return num_left


def num_replicas(address: str, node: str) -> int:
    """Return how many replicas of deployments are on the node of this id."""
    filters: list[Any] = [("node_id", "=", node), ("state", "=", "ALIVE")]
    actors = list_actors(address, filters, limit=1000, timeout=TIMEOUT_S)
    return sum(actor.class_name.startswith("ServeReplica:") for actor in actors)


def main() -> None:
    """Drain this node; exit with 1 and a message if replicas are left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit-s", type=float, default=330.0)
    # In a pod, the host name stands for the pod's own address.
    parser.add_argument("--node-ip", default=socket.gethostbyname(socket.gethostname()))
    args = parser.parse_args()
    try:
        num_left = drain(os.environ["RAY_ADDRESS"], args.node_ip, args.limit_s)
    except RuntimeError as error:
        sys.exit(f"cannot drain this node: {error}")
    if num_left:
        sys.exit(f"{num_left} replicas are left after {args.limit_s:.0f} s")


if __name__ == "__main__":
    main()
