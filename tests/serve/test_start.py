"""Tests the `serve` command as an operator runs it: what its port answers while it starts, and how it ends."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from fashion_rag.artifacts import write_json
from serve.config_file import Graph
from serve.http.replies import ErrorReply
from serve.ports import free_port
from tests.waiting import wait_for

REPOSITORY = Path(__file__).parents[2]
ORIGIN = "https://shop.example"


@contextmanager
def command(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command in `folder` during the block, with its output in the files `out` and `err`."""
    program = "from fashion_rag.cli import app; app()"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-c", program, "serve", *options],
            cwd=folder,
            env=environment,
            stdout=out,
            stderr=err,
            text=True,
            start_new_session=True,
            # A shell's background jobs ignore it, and what they start does too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def interrupt(process: subprocess.Popen[str]) -> int:
    """Press Ctrl-C, which reaches all processes of the terminal, and return the exit code."""
    os.killpg(process.pid, signal.SIGINT)
    return process.wait()


def options_of(graph: Graph, folder: Path, port: int) -> Sequence[str]:
    # JSON is YAML.
    write_json(folder / "serve.yaml", graph.as_config())
    return "--config", str(folder / "serve.yaml"), "--port", str(port)


def test_a_port_that_is_taken_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with command(tmp_path, "--port", str(port)) as process:
            assert process.wait() == 1
    (line,) = (tmp_path / "err").read_text().splitlines()
    assert str(port) in line
    assert "in use" in line
    assert (tmp_path / "out").read_text() == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("one_process", "deployment", "settings"),
    [(False, "VAE", {"max_batch": 4}), (True, "Stages", {"vae": {"max_batch": 4}})],
)
def test_a_start_answers_from_the_beginning_and_ends_with_ctrl_c(
    tiny_bundle: Path,
    tiny_catalogue: Path,
    onnx_folder: Path,
    tmp_path: Path,
    one_process: bool,
    deployment: str,
    settings: dict[str, Any],
) -> None:
    args: dict[str, Any] = {"bundle": str(tiny_bundle), "catalogue": str(tiny_catalogue), "compiled": str(onnx_folder)}
    args["one_process"] = one_process
    deployments = [{"name": deployment, "user_config": settings}]
    url = f"http://127.0.0.1:{(port := free_port())}"
    replies: list[httpx.Response] = []
    with command(tmp_path, *options_of(Graph(args, deployments), tmp_path, port), "--allow-origin", ORIGIN) as process:

        def listens() -> bool:
            assert process.poll() is None, (tmp_path / "err").read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        def ready() -> bool:
            # Any error of the connection fails the test: from the first reply on, somebody always answers.
            replies.append(httpx.post(f"{url}/v1/images/edits", headers={"origin": ORIGIN}, timeout=60))
            return "ready on" in (tmp_path / "out").read_text()

        wait_for(listens)
        wait_for(ready, lambda: (tmp_path / "err").read_text())
        last: Any = httpx.post(f"{url}/v1/images/edits", headers={"origin": ORIGIN}, timeout=60)
        assert interrupt(process) == 0
    for reply in replies:
        assert reply.status_code in (503, 415)
        assert ErrorReply.model_validate(reply.json()).error.message
        assert reply.status_code == 415 or int(reply.headers["retry-after"]) > 0
    assert replies[0].status_code == 503
    assert (last.status_code, last.headers["access-control-allow-origin"]) == (415, ORIGIN)
    said = (tmp_path / "err").read_text()
    assert "Denoiser to load the UNet" in said
    assert f"{deployment} to load" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_ctrl_c_during_a_start_leaves_no_traceback(tiny_bundle: Path, tiny_catalogue: Path, tmp_path: Path) -> None:
    options = ("--bundle", str(tiny_bundle), "--catalogue", str(tiny_catalogue), "--port", str(free_port()))
    with command(tmp_path, *options) as process:
        wait_for(lambda: "to load" in (tmp_path / "err").read_text())
        assert interrupt(process) == 0
    assert "Traceback" not in (tmp_path / "err").read_text()


@pytest.mark.slow
def test_a_graph_that_cannot_start_is_said_in_one_line(
    tiny_bundle: Path, tiny_catalogue: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    args = {"bundle": str(tiny_bundle), "catalogue": str(tiny_catalogue), "compiled": str(onnx_folder)}
    # What a deployment is told of its own is looked at by its replica only.
    deployments = [{"name": "Denoiser", "user_config": {"max_rows": 1}}]
    with command(tmp_path, *options_of(Graph(args, deployments), tmp_path, free_port())) as process:
        assert process.wait() == 1
    *_, line = (tmp_path / "err").read_text().splitlines()
    assert line.startswith("error: the graph could not be started: ")
    assert "max_rows" in line
