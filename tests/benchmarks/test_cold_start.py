"""Tests what the benchmark of the start reads of processes, and of the answers of a server that starts."""

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from starlette.types import Message

from benchmarks.cold_start import Load, Start, awaited, kind_of, processes_of, pss_bytes, summary
from serve.http.replies import Readiness
from serve.proxy.gate import refuse
from tests.waiting import wait_for

HOLD = "import sys; held = bytearray({size}); print('ready', flush=True); sys.stdin.read()"
SIZE = 64 * 1024**2


def answer(waits_for: str) -> dict[str, Any]:
    """Return the answer of a server that waits for this."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(refuse({"type": "http", "headers": []}, receive, send, waits_for))
    body: dict[str, Any] = json.loads(sent[1]["body"])
    return body


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("ray::ServeReplica:fashion-rag:VAE", "VAE"),
        ("ray::SERVE_REPLICA::fashion-rag#VAE#yjoi:ServeReplica:fashion-rag:VAE.__init__", "VAE"),
        ("ray::ProxyActor", "HTTP proxy"),
        ("/bin/python /site-packages/ray/_private/log_monitor.py --session-dir=x", "Ray's log monitor"),
        ("/bin/python /site-packages/ray/autoscaler/_private/monitor.py --logs-dir=x", "Ray's autoscaling monitor"),
        ("/bin/python3 /bin/fashion-rag serve --port 8000", "command line"),
        ("/bin/sleep 5", "other"),
    ],
)
def test_processes_are_told_apart(command: str, kind: str) -> None:
    assert kind_of(command) == kind


def test_a_process_and_its_children_are_found_with_what_they_use() -> None:
    # The child holds memory and has used a processor for a while.
    child = HOLD.format(size=SIZE)
    spin = "import time\nwhile time.process_time() < 0.5: pass\n"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin + child!r}])"
    before = {process.pid for process in processes_of(os.getpid())}
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"ready\n"
        root, held = processes_of(parent.pid)
        assert root.pid == parent.pid
        assert held.cpu_s >= 0.5
        assert held.started_s >= root.started_s
        assert pss_bytes(held.pid) > SIZE > pss_bytes(root.pid)
        assert {process.pid for process in processes_of(os.getpid())} - before == {root.pid, held.pid}
        assert parent.stdin is not None
        parent.stdin.close()
    wait_for(lambda: pss_bytes(held.pid) == 0)


def test_what_a_server_waits_for_is_read_from_its_answers() -> None:
    assert awaited(answer("Ray to start")) == "Ray to start"
    assert awaited(answer("Denoiser to load the UNet, VAE to load the VAE")) == "stages to load"
    assert awaited(Readiness(stages={"vae": False}, missing=[], warnings=[]).model_dump()) == "stages to answer"


def test_the_summary_has_medians_of_what_all_starts_have() -> None:
    load = Load(1.0, 2.0, 3.0)
    first = Start(
        first_answer_s=1.0,
        ready_s=10.0,
        first_picture_s=11.0,
        cpu_s=20.0,
        phases_s={"Ray to start": 2.0, "seen once": 1.0},
        loads={"VAE": load},
        processes_s={"VAE": 1.0},
        cpu_by_process_s={"VAE": 5.0},
        memory_mib={"VAE": 100.0, "Ingress": 10.0},
    )
    second = replace(first, ready_s=14.0, phases_s={"Ray to start": 4.0}, memory_mib={"VAE": 200.0, "Ingress": 20.0})
    figures = summary([first, second])
    assert figures["ready_s"] == 12.0
    assert figures["phases_s"] == {"Ray to start": 3.0}
    assert figures["memory_mib"] == 165.0
    assert figures["memory_by_process_mib"] == {"VAE": 150.0, "Ingress": 15.0}
    assert figures["loads"] == {"VAE": {"process_s": 1.0, "imported_s": 2.0, "loaded_s": 3.0}}
