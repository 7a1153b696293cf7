"""Ray nodes as on a cluster, on one machine: each a `ray start` of its own in a network namespace of its own.

So each has an address, the ports that it has in a pod, and a death of its own. Needs Linux, root and iproute2.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import httpx

BIN = Path(sys.executable).parent
SUBNET = "10.231.77"
# What a worker gets of memory besides its object store is only a number to Ray, so it may be more than there is.
OBJECT_STORE_BYTES = 512 * 1024**2


def why_not() -> str | None:
    """Return the why nodes cannot be started here, None if they can."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        return "network namespaces need root and iproute2"
    probe = f"fr-probe-{secrets.token_hex(2)}"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True).returncode:
        return "this machine lets nobody make network namespaces"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return None


@dataclass
class Node:
    """A Ray node. Made by `Cluster.add`."""

    name: str
    ip: str
    namespace: str
    folder: Path

    def pids(self) -> list[int]:
        """Return all processes of the node."""
        run = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True)
        return [int(pid) for pid in run.stdout.split()]

    def processes(self, title: str) -> list[int]:
        """Return the processes of the node whose command line begins with `title`."""
        lines = {pid: Path(f"/proc/{pid}/cmdline") for pid in self.pids()}
        return [pid for pid, line in lines.items() if line.exists() and line.read_text().startswith(title)]

    def kill(self) -> None:
        """Return what a power cut does: all processes end at once, without a word."""
        while pids := self.pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def run(self, *command: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a command on the node, as `kubectl exec` does."""
        inside = ["ip", "netns", "exec", self.namespace, *command]
        return subprocess.run(inside, env=dict(environment), capture_output=True, text=True)


@dataclass
class Cluster:
    """Nodes that can reach each other and this process. The first is the head, which runs no replicas."""

    environment: dict[str, str]
    folder: Path
    bridge: str
    nodes: list[Node] = field(default_factory=list)
    # Of addresses, which a node that has gone does not give back; the first is this process's.
    _numbers: Iterator[int] = field(default_factory=lambda: count(2))

    @property
    def head(self) -> Node:
        return self.nodes[0]

    def workers(self) -> list[Node]:
        """Return the other nodes."""
        return self.nodes[1:]

    @property
    def dashboard(self) -> str:
        """Return where `serve deploy` asks."""
        return f"http://{self.head.ip}:8265"

    def add(self, name: str, *options: str) -> Node:
        """Return a new node, ready; `options` are those of `ray start`."""
        number = next(self._numbers)
        node = Node(name, f"{SUBNET}.{number}", f"{self.bridge}-{number}", self.folder / f"n{number}")
        role = ["--address", f"{self.head.ip}:6379"] if self.nodes else ["--head", "--dashboard-host", "0.0.0.0"]
        self.nodes.append(node)
        self._plug_in(node, number)
        start = ["ray", "start", *role, "--node-ip-address", node.ip, "--temp-dir", str(node.folder)]
        memory = ["--object-store-memory", str(OBJECT_STORE_BYTES), "--metrics-export-port", "8080"]
        run = node.run(str(BIN / start[0]), *start[1:], *memory, *options, environment=self.environment)
        if run.returncode:
            raise RuntimeError(f"{name}: {run.stdout}{run.stderr}")
        return node

    def remove(self, node: Node) -> None:
        """Return the node dies, if it has not, and is no more."""
        node.kill()
        self.nodes.remove(node)
        subprocess.run(["ip", "netns", "del", node.namespace], check=True)

    def _plug_in(self, node: Node, number: int) -> None:
        cable = f"{self.bridge}v{number}"
        inside = ["ip", "netns", "exec", node.namespace]
        for command in (
            ["ip", "netns", "add", node.namespace],
            ["ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", node.namespace],
            ["ip", "link", "set", cable, "master", self.bridge, "up"],
            [*inside, "ip", "address", "add", f"{node.ip}/24", "dev", "eth0"],
            [*inside, "ip", "link", "set", "eth0", "up"],
            [*inside, "ip", "link", "set", "lo", "up"],
        ):
            subprocess.run(command, check=True)

    def serve(self, *arguments: str) -> str:
        """Return what Serve's command line answers."""
        run = self.head.run(str(BIN / "serve"), *arguments, environment=self.environment)
        if run.returncode:
            raise RuntimeError(f"serve {' '.join(arguments)}: {run.stdout}{run.stderr}")
        return run.stdout

    def details(self) -> dict:
        """Return what Serve's REST API tells of itself, applications, deployments and replicas."""
        headers = {"authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        reply = httpx.get(f"{self.dashboard}/api/serve/applications/", headers=headers, timeout=30)
        return reply.raise_for_status().json()


@contextmanager
def cluster(environment: Mapping[str, str], head_options: Sequence[str] = ()) -> Iterator[Cluster]:
    """Provide a cluster with its head; all its processes end with the block."""
    bridge = f"fr{secrets.token_hex(2)}"
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    # Short, because the paths of Unix sockets must be.
    with tempfile.TemporaryDirectory(prefix="fr", dir="/tmp", ignore_cleanup_errors=True) as folder:
        started = Cluster({**os.environ, "PATH": path, **settings, **environment}, Path(folder), bridge)
        try:
            for command in (
                ["ip", "link", "add", bridge, "type", "bridge"],
                ["ip", "address", "add", f"{SUBNET}.1/24", "dev", bridge],
                ["ip", "link", "set", bridge, "up"],
            ):
                subprocess.run(command, check=True)
            started.add("head", "--num-cpus", "0", "--num-gpus", "0", *head_options)
            yield started
        finally:
            # The head last: without it, the others would complain at length.
            for node in reversed(started.nodes.copy()):
                started.remove(node)
            subprocess.run(["ip", "link", "del", bridge], check=False)
