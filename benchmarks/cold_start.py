"""The claim: a server on two cores answers its first edit soon after its start, and needs little memory.

The server is started with `fashion-rag serve`, as a user does, and asked on `/readyz` until it is ready. Then it gets
one edit of a photo and a sentence, and is stopped. The bundle, the catalogue and the exported networks are there
before, and a first start that is not counted brings all files into the disk cache. CPU seconds are those of all
processes of the server until it is ready, which depend less than the seconds on what else the machine does. Memory is
the proportional set size (PSS) after the edit: a page that processes share counts in part for each of them.

    python -m benchmarks.cold_start --out benchmarks/results/cold_start.json
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple

import httpx
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.medians import medians
from fashion_rag.bundle import Bundle
from fashion_rag.demo.world.catalogue import ensure_demo_world
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.provenance import provenance, write_result
from serve import app
from serve.bench import drawn, mix
from serve.ports import free_port

WARM_UP_STARTS = 1
POLL_S = 0.05
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 60.0
MIB = 1024**2
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
REPLICA = re.compile(r"ServeReplica:[^:]*:(\w+)")
# The names of the other processes, by what their command lines contain; the first that fits counts.
KINDS = {
    "ray::ServeController": "Serve's controller",
    "ray::ProxyActor": "HTTP proxy",
    "ray::DashboardAgent": "Ray's dashboard agent",
    "dashboard/agent.py": "Ray's dashboard agent",
    "ray::RuntimeEnvAgent": "Ray's runtime environment agent",
    "runtime_env/agent": "Ray's runtime environment agent",
    "ray::IDLE": "Ray's idle workers",
    "default_worker.py": "Ray's idle workers",
    "gcs_server": "Ray's GCS",
    "raylet/raylet": "Ray's raylet",
    "dashboard/dashboard.py": "Ray's dashboard",
    "log_monitor.py": "Ray's log monitor",
    "monitor.py": "Ray's autoscaling monitor",
    "resource_tracker": "command line",
    "spawn_main": "process of the start",
    "fashion-rag serve": "command line",
}


class Process(NamedTuple):
    """A process: what it is, when it started in seconds since the machine did, and what it has used of the CPU.

    cpu_s: with that of its children that have ended.
    """

    pid: int
    kind: str
    started_s: float
    cpu_s: float


@dataclass(frozen=True)
class Load:
    """When a replica had its process, its imports and its networks, in seconds since the start of the command."""

    process_s: float
    imported_s: float
    loaded_s: float


@dataclass(frozen=True)
class Start:
    """What one start took.

    first_answer_s, ready_s, first_picture_s: since the start of the command. cpu_s: until the server was ready.
    phases_s: how long each thing was awaited, as the server told its callers. loads: by deployment. processes_s: when
    the other processes started. memory_mib: after the edit, by kind of process.
    """

    first_answer_s: float
    ready_s: float
    first_picture_s: float
    cpu_s: float
    phases_s: dict[str, float]
    loads: dict[str, Load]
    processes_s: dict[str, float]
    cpu_by_process_s: dict[str, float]
    memory_mib: dict[str, float]


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    num_starts: Annotated[int, typer.Option(help="Starts that are counted.")] = 5,
    bundle: Annotated[Path, typer.Option(help="Model bundle.")] = DEMO_BUNDLE,
) -> None:
    """Measure starts of the server, print their medians and write all of them."""
    # A shell's background jobs ignore it, and so would the servers that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    edit = mix.draw(mix.EditMix(prompts=drawn.drawn_prompts()), [0.0], seed=0)[0]
    photo = drawn.draw_photos([edit], Bundle.open(bundle).manifest)[edit.category, edit.person]
    with tempfile.TemporaryDirectory() as folder:
        catalogue = ensure_demo_world(Path(folder), bundle)
        app.local_config(bundle, catalogue).runtime.open()
        starts = []
        for number in range(WARM_UP_STARTS + num_starts):
            start = measure(bundle, catalogue, photo.image, edit.prompt)
            if number >= WARM_UP_STARTS:
                starts.append(start)
    figures = summary(starts)
    result = {"from": provenance(), "num_starts": num_starts, "medians": figures}
    write_result(out, result | {"starts": [asdict(start) for start in starts]})
    _print(figures, num_starts)


def measure(bundle: Path, catalogue: Path, photo: bytes, prompt: str) -> Start:
    """Start a server, send it an edit, stop it, and return what that took."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("fashion-rag")), "serve", "--port", str(port)]
    command += ["--bundle", str(bundle), "--catalogue", str(catalogue)]
    started_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    with tempfile.TemporaryFile() as output:
        server = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=START_TIMEOUT_S, trust_env=False) as client:
                phases_s, first_answer_s = _wait_until_ready(client, server, started_s)
                ready_s = time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
                at_ready = list(processes_of(server.pid))
                client.post("/v1/images/edits", files={"image": photo}, data={"prompt": prompt}).raise_for_status()
                first_picture_s = time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
            memory_mib = _added_up((process.kind, pss_bytes(process.pid) / MIB) for process in processes_of(server.pid))
            loads = _loads(at_ready, started_s)
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(STOP_TIMEOUT_S)
            finally:
                server.kill()
    return Start(
        first_answer_s=first_answer_s,
        ready_s=ready_s,
        first_picture_s=first_picture_s,
        cpu_s=sum(process.cpu_s for process in at_ready),
        phases_s=phases_s,
        loads=loads,
        processes_s={process.kind: process.started_s - started_s for process in at_ready},
        cpu_by_process_s=_added_up((process.kind, process.cpu_s) for process in at_ready),
        memory_mib=memory_mib,
    )


def _wait_until_ready(
    client: httpx.Client, server: subprocess.Popen[bytes], started_s: float
) -> tuple[dict[str, float], float]:
    """Return how long each thing was awaited until the server was ready, and after how long it first answered."""
    phases_s: dict[str, float] = {}
    first_answer_s = None
    phase, before_s = "no answer yet", started_s
    while True:
        reply = None
        with suppress(httpx.TransportError):
            reply = client.get("/readyz")
        now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        phases_s[phase] = phases_s.get(phase, 0.0) + now_s - before_s
        before_s = now_s
        if server.poll() is not None or now_s - started_s > START_TIMEOUT_S:
            raise RuntimeError(f"the server did not start; its exit status is {server.poll()}")
        if reply is not None:
            first_answer_s = first_answer_s or now_s - started_s
            if reply.is_success:
                return phases_s, first_answer_s
            phase = awaited(reply.json())
        time.sleep(POLL_S)


def awaited(reply: dict[str, Any]) -> str:
    """Return what a server that is not ready waits for, from its answer."""
    if "stages" in reply:
        return "stages to answer"
    message: str = reply["error"]["message"]
    found = re.search("waits for (.*);", message)
    # The stages that are still loading change from answer to answer.
    return "stages to load" if found is None or " to load " in found[1] else found[1]


def processes_of(root: int) -> Iterator[Process]:
    """Yield the process `root` and all that descend from it."""
    stats: dict[int, list[str]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # The second field, the name in brackets, may contain anything.
            stats[int(folder.name)] = (folder / "stat").read_text().rpartition(")")[2].split()
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        waiting += [child for child, fields in stats.items() if int(fields[1]) == pid]
        with suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            cpu_s = sum(map(int, stats[pid][11:15])) / TICKS_PER_S
            yield Process(pid, kind_of(command), int(stats[pid][19]) / TICKS_PER_S, cpu_s)


def kind_of(command: str) -> str:
    """Return what a process of the server is: a deployment's name, a name of KINDS, or "other"."""
    if found := REPLICA.search(command):
        return found[1]
    return next((name for part, name in KINDS.items() if part in command), "other")


def pss_bytes(pid: int) -> int:
    """Return the proportional set size of a process, or 0 if it has ended."""
    with suppress(OSError):
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        return 1024 * int(found[1]) if found else 0
    return 0


def _loads(processes: list[Process], started_s: float) -> dict[str, Load]:
    """Return when each replica was loaded, from the files into which Serve logs."""
    # Logs have Unix time.
    started_unix_s = time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)
    by_pid = {process.pid: process for process in processes}
    times_s: dict[int, dict[str, float]] = {}
    for path in Path(app.LOG_FOLDER).glob("replica_*.log"):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if entry.get("process") in by_pid and "initializing replica" in entry["message"]:
                word = entry["message"].split()[0]
                times_s.setdefault(entry["process"], {})[word] = entry["timestamp_ns"] / 1e9 - started_unix_s
    loads = {}
    for pid, words in times_s.items():
        process_s = by_pid[pid].started_s - started_s
        loads[by_pid[pid].kind] = Load(process_s, words["Started"], words["Finished"])
    return loads


def _added_up(pairs: Iterator[tuple[str, float]]) -> dict[str, float]:
    """Return the sums of the numbers that have the same name."""
    sums: dict[str, float] = {}
    for name, number in pairs:
        sums[name] = sums.get(name, 0.0) + number
    return sums


def summary(starts: list[Start]) -> dict[str, Any]:
    """Return the medians over the starts of each figure, and of the memory of all processes together."""
    figures: dict[str, Any] = {}
    for name in ("first_answer_s", "ready_s", "first_picture_s", "cpu_s"):
        figures[name] = median(getattr(start, name) for start in starts)
    figures["memory_mib"] = median(sum(start.memory_mib.values()) for start in starts)
    for name in ("phases_s", "processes_s", "cpu_by_process_s", "memory_mib"):
        records = [getattr(start, name) for start in starts]
        # A process or a phase may be missing in a start.
        common = set.intersection(*map(set, records))
        key = "memory_by_process_mib" if name == "memory_mib" else name
        figures[key] = medians([{part: record[part] for part in record if part in common} for record in records])
    figures["loads"] = {}
    for deployment in starts[0].loads:
        figures["loads"][deployment] = medians([asdict(start.loads[deployment]) for start in starts])
    return figures


def _print(figures: dict[str, Any], num_starts: int) -> None:
    console = Console()
    table = Table("process", "CPU s until ready", "memory MiB", title=f"Medians of {num_starts} starts")
    for name, memory in sorted(figures["memory_by_process_mib"].items(), key=lambda item: -item[1]):
        table.add_row(name, f"{figures['cpu_by_process_s'].get(name, 0.0):.1f}", f"{memory:.0f}")
    table.add_row("all", f"{figures['cpu_s']:.1f}", f"{figures['memory_mib']:.0f}")
    console.print(table)
    phases = Table("awaited", "s")
    for name, seconds in figures["phases_s"].items():
        phases.add_row(name, f"{seconds:.1f}")
    console.print(phases)
    loads = Table("replica", "process after s", "imported after s", "loaded after s")
    for name, load in figures["loads"].items():
        loads.add_row(name, *(f"{load[key]:.1f}" for key in ("process_s", "imported_s", "loaded_s")))
    console.print(loads)
    console.print(f"ready after {figures['ready_s']:.1f} s, first picture after {figures['first_picture_s']:.1f} s")


if __name__ == "__main__":
    typer.run(main)
