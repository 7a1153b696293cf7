"""Tests `fashion-rag bench` against a stand-in for a server and, once, against the real graph."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import ray
from typer.testing import CliRunner, Result

from fashion_rag.cli import app
from serve.bench import load, measure, scrape
from serve.bench.mix import Photo, Planned, read_trace
from serve.bench.scrape import server_figures
from tests.serve.client import PATIENCE_S

PHOTOS = {("dresses", 0): Photo(b"photo", b"mask", "[]")}
DONE = {"data": [{"b64_json": "AAAA", "seed": 1}], "timings_ms": {"denoise": 7.5}}
FULL = {"error": {"type": "Overloaded", "field": None, "message": "full"}}
STAGES = {"retrieve", "condition", "encode", "denoise", "decode"}
# httpx gives fewer edits a connection unless it is configured to.
MANY = 120


@contextmanager
def stand_in(answer: Callable[[bytes], tuple[int, object]]) -> Iterator[str]:
    """Yield the URL of a server that answers every edit with what `answer` returns for its body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, content = answer(self.rfile.read(int(self.headers["content-length"])))
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            if status == 503:
                self.send_header("retry-after", "5")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = MANY

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_no_edit_waits_for_another() -> None:
    barrier = threading.Barrier(MANY, timeout=PATIENCE_S)

    def answer(body: bytes) -> tuple[int, object]:
        barrier.wait()
        return 200, DONE

    seen = list[load.EditOutcome]()
    with stand_in(answer) as url:
        outcomes = load.run(
            url, [Planned(0.0, "dresses", "red", seed=seed) for seed in range(MANY)], PHOTOS, report=seen.append
        )
    assert [outcome.planned.seed for outcome in outcomes] == list(range(MANY))
    assert {outcome.kind for outcome in outcomes} == {"done"}
    assert len(seen) == MANY


def test_a_client_that_dies_is_an_error() -> None:
    with stand_in(lambda body: (200, DONE)) as url, pytest.raises(RuntimeError, match="died after 0 of 1 edits"):
        load.run(url, [Planned(0.0, "dresses", "red", person=7)], PHOTOS)


def test_a_load_is_measured_and_can_be_repeated(tiny_bundle: Path, tmp_path: Path) -> None:
    bodies = list[bytes]()

    def answer(body: bytes) -> tuple[int, object]:
        bodies.append(body)
        return (503, FULL) if b'name="steps"\r\n\r\n50\r\n' in body else (200, DONE)

    (tmp_path / "keys").write_text("# shop\nsesame\n")
    (tmp_path / "prompts").write_text('[["green dress", "long"]]')
    options = ("--bundle", tiny_bundle, "--api-keys", tmp_path / "keys", "--warm-up", 1)
    with stand_in(answer) as url:
        drawn = ("--rate", 40, "--duration", 1, "--steps", "10,50", "--prompts", tmp_path / "prompts", "--seed", 4)
        kept = ("--save-trace", tmp_path / "trace", "--plot", tmp_path / "plots" / "first.png")
        first = bench("--url", url, *options, *drawn, *kept, "--out", tmp_path / "new" / "first.json")
        half = len(bodies)
        again = bench("--url", url, *options, "--trace", tmp_path / "trace", "--out", tmp_path / "again.json")
    assert (first.exit_code, again.exit_code) == (0, 0), (first.output, again.output)
    planned = read_trace(tmp_path / "trace")
    assert half == len(bodies) / 2 == 1 + len(planned)
    assert all(b"green dress, long" in body for body in bodies)
    assert sorted(map(fields, bodies[:half])) == sorted(map(fields, bodies[half:]))

    (run,) = json.loads((tmp_path / "new" / "first.json").read_text())["runs"]
    summary, num_refused = run["summary"], sum(edit.steps == 50 for edit in planned)
    assert (run["rate"], summary["window_s"], summary["num_arrived"]) == (40.0, 1.0, len(planned))
    assert (summary["num_refused"], summary["num_failed"]) == (num_refused, 0)
    assert summary["refusals"]["503"]["retry_after_share"] == 1
    (run,) = json.loads((tmp_path / "again.json").read_text())["runs"]
    assert (run["rate"], run["summary"]["num_refused"]) == (None, num_refused)
    table = (tmp_path / "new" / "first.md").read_text()
    assert table in first.stdout and "| 40/s |" in table
    assert (tmp_path / "plots" / "first.png").read_bytes().startswith(b"\x89PNG")
    assert f"{len(planned) - num_refused} done, {num_refused} refused, 0 failed" in first.stderr


def fields(body: bytes) -> list[bytes]:
    """Return the parts of a multipart body, without the boundaries."""
    return body.split(body.split(b"\r\n", 1)[0])


def test_rates_are_sent_one_after_the_other(tiny_bundle: Path, tmp_path: Path) -> None:
    with stand_in(lambda body: (200, DONE)) as url:
        options = ("--url", url, "--bundle", tiny_bundle, "--warm-up", 0, "--duration", 1)
        result = bench(*options, "--rate", "5,20", "--out", tmp_path / "out.json")
        assert (
            bench(*options, "--rate", "5,20", "--save-trace", tmp_path / "no", "--out", tmp_path / "no").exit_code == 2
        )
    assert result.exit_code == 0, result.output
    slow, fast = json.loads((tmp_path / "out.json").read_text())["runs"]
    assert (slow["rate"], fast["rate"]) == (5.0, 20.0)
    assert slow["summary"]["num_done"] < fast["summary"]["num_done"]
    assert "|  | 5/s | 20/s |" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--rate", "fast"), "rate"),
        (("--steps", "10,"), "steps"),
        (("--garments", "4"), "num_garments"),
        (("--categories", "hats"), "categories"),
        (("--stream", "2"), "stream"),
        (("--catalogue", "somewhere"), "url"),
        (("--api-keys", "/nowhere"), "api_keys"),
        (("--api-keys", "/dev/null"), "api_keys"),
        (("--metrics-url", "http://127.0.0.1:9/metrics", "--warm-up", "0"), "metrics_url"),
        ((), "url"),
    ],
)
def test_what_cannot_be_is_one_line(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], named: str
) -> None:
    # Nobody listens at the URL, so the case without arguments has reached the warm-up.
    monkeypatch.setattr(scrape, "SETTLE_S", 0.0)
    options = ("--url", "http://127.0.0.1:9", "--bundle", tiny_bundle, "--out", tmp_path / "out.json")
    result = bench(*options, *arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(f"error: {named}: got ")
    assert not (tmp_path / "out.json").exists()


def test_without_matplotlib_a_plot_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = bench("--url", "http://127.0.0.1:9", "--out", tmp_path / "out.json", "--plot", tmp_path / "plot.png")
    assert (result.exit_code, result.stderr) == (
        2,
        f"error: plot: got '{tmp_path / 'plot.png'}'; needs matplotlib: pip install matplotlib\n",
    )


def test_a_server_that_is_gone_at_the_end_costs_only_its_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrape, "SETTLE_S", 0.0)
    planned = [Planned(0.0, "dresses", "red", steps=10)]

    def metrics() -> Iterator[scrape.Series]:
        yield {}
        yield scrape.parse('ray_fashion_rag_rows_per_step_bucket{le="2.0"} 10.0')
        raise scrape.httpx.ConnectError("gone")

    answers = metrics()
    monkeypatch.setattr(scrape, "scrape", lambda urls: next(answers))
    with stand_in(lambda body: (200, DONE)) as url:
        target = measure.Target(url, ("http://127.0.0.1:9/metrics",))
        with_metrics, without = measure.measure(target, [measure.PlannedLoad(planned)] * 2, PHOTOS, 5.0)
    assert with_metrics.server is not None and with_metrics.server.rows_per_call == 2.0
    assert (without.server, without.summary.num_done) == (None, 1)


@pytest.mark.parametrize(("status", "num_rows"), [(503, 20), (504, None), (500, None)])
def test_rows_are_known_where_nothing_is_given_up_half_way(status: int, num_rows: int | None) -> None:
    done, undone = (Planned(0.0, "dresses", "red", steps=steps) for steps in (10, 50))
    outcomes = [
        load.EditOutcome(done, 0.0, 1.0, load.Reply(200)),
        load.EditOutcome(undone, 0.0, 1.0, load.Reply(status, "...")),
    ]
    assert measure._num_rows(outcomes) == num_rows


def test_the_graph_does_what_is_sent(url: str, tiny_bundle: Path, tmp_path: Path) -> None:
    edit_mix = ("--steps", "2,4", "--garments", "0,1,3", "--stream", 0.5, "--unguided", 0.3, "--repeat-person", 0.3)
    options = ("--url", url, "--bundle", tiny_bundle, "--rate", 5, "--duration", 2, *edit_mix)
    result = bench(*options, "--save-trace", tmp_path / "trace", "--out", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    (run,) = json.loads((tmp_path / "out.json").read_text())["runs"]
    planned = read_trace(tmp_path / "trace")
    assert run["summary"]["num_done"] == len(planned) > 0, run
    assert set(run["summary"]["stages_ms"]) == STAGES
    assert run["summary"]["first_preview_s"]["p50"] > 0

    nodes = [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in ray.nodes()]
    stages: set[str] = set()
    end = time.monotonic() + PATIENCE_S
    # Replicas report every few seconds, each at a different time.
    while not stages >= {"rows", *STAGES} and time.monotonic() < end:
        figures = server_figures({}, scrape.scrape(nodes), 1)
        stages = {*figures.stages_ms, *(["rows"] if figures.num_calls else [])}
        time.sleep(0.5)
    assert stages >= {"rows", *STAGES}
    assert figures.step_ms["p50"] > 0
