"""The claims: next to what one would use instead, our server answers sooner, does more, and does not break when asked
for more than it can do. Weights, catalogue, machine and requests are the same; only what serves them differs:

    (a) diffusers, eager, one edit at a time     (b) the same in `@serve.batch` of Ray Serve, four edits at a time
    (c) ours, on PyTorch                         (d) ours, on ONNX Runtime

Each system has all cores. In every round each is started anew, alone on the machine, and measured once it is warm:

    light      One caller sends edits of 20 steps and one garment, one after the other. (d) also makes them with UniPC,
               of which 10 steps are as good as 20 of the others' DDIM (frontier.py).
    saturated  Eight callers each wait for one edit before they send the next, of 10, 20 or 50 steps, equally likely.
               That keeps the largest batch of any system full, and the next one waiting. Edits that came without
               waiting would cost (a) and (b) the decoding of ever more uploads, and (d) would refuse them.
    steady     (b) and (d) get the same edits at the same random times, at 80 % of what (b) did saturated in this round.
    overload   (a) and (d) get edits with a deadline of three times their own light edit, at five times what they did
               saturated. What they do in time, as a share of what they did saturated, is counted in steps, so that
               preferring short edits gains nothing.

Edits a second leave out the first fifth of the time, in which the queue fills. An edit of the steady load that is not
done counts as one that takes PATIENCE_S. None of this includes a start. Starts have a line of their own, which leaves
out the export to ONNX; (a) and (b) import our parser of uploads, and with it more than they need.

    python -m benchmarks.against --out benchmarks/results/against.json --plot benchmarks/results/against.png
"""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import httpx
import typer

from benchmarks.against.report import CALLERS, DEADLINE, LOAD, OVERLOAD, STEPS, SYSTEMS, pace, plot, rows, table
from fashion_rag.manifest import DEMO_BUNDLE
from serve.bench import load
from serve.bench.load import EditOutcome
from serve.bench.mix import EditMix, Photos, Planned, draw, poisson
from serve.bench.report import summarise
from serve.ports import free_port

ROOT = Path(__file__).parents[2]
BASELINES = "benchmarks.against.baselines"
LIGHT_STEPS = 20
AS_GOOD_STEPS = 10  # with UniPC
NUM_PERSONS = 20
FILLING = 0.2  # the share of the time in which the queue fills
PATIENCE_S = 120.0
MIN_DEADLINES = 5
START_S, STOP_S, POLL_S = 600.0, 60.0, 0.2

Record = dict[str, Any]


@dataclass(frozen=True)
class AgainstSettings:
    """How much is run.

    num_light: edits of each system in each round. saturated_s, steady_s, overload_s: for how many seconds edits come;
    an overload lasts for at least MIN_DEADLINES deadlines.
    """

    num_rounds: int = 3
    num_light: int = 10
    saturated_s: float = 30.0
    steady_s: float = 50.0
    overload_s: float = 20.0


QUICK = AgainstSettings(num_rounds=1, num_light=3, saturated_s=10.0, steady_s=10.0, overload_s=8.0)


@dataclass(frozen=True)
class Edits:
    """The edits of a round, the same for each system. prompts: by category."""

    prompts: Mapping[str, Sequence[str]]
    photos: Photos
    seed: int

    def light(self, number: int) -> list[Planned]:
        """Return edits for one caller."""
        return self._drawn((LIGHT_STEPS,), [0.0] * number)

    def saturating(self) -> list[Planned]:
        """Return more edits than any system does while it is saturated."""
        return self._drawn(STEPS, [0.0] * 1000)

    def coming(self, rate: float, duration_s: float, deadline_s: float | None = None) -> list[Planned]:
        """Return edits that come at random times."""
        return self._drawn(STEPS, poisson(rate, duration_s, self.seed), deadline_s)

    def _drawn(self, steps: Sequence[int], arrivals: Sequence[float], deadline_s: float | None = None) -> list[Planned]:
        edits = draw(EditMix(self.prompts, steps=steps, deadline_s=deadline_s), arrivals, self.seed)
        return [replace(edit, person=edit.person % NUM_PERSONS) for edit in edits]


def closed_loop(
    url: str, planned: Sequence[Planned], photos: Photos, num_callers: int = 1, duration_s: float = math.inf
) -> list[EditOutcome]:
    """Return how the edits ended, in the order of their ends, of callers who each wait for one before the next.

    None is sent later than `duration_s`; those on the way then are waited for.
    """

    async def main() -> list[EditOutcome]:
        async with httpx.AsyncClient(base_url=url, timeout=None) as client:
            return await call(client, planned, photos, num_callers, duration_s)

    return asyncio.run(main())


async def call(
    client: httpx.AsyncClient, planned: Sequence[Planned], photos: Photos, num_callers: int, duration_s: float
) -> list[EditOutcome]:
    """Return the same as `closed_loop`, sent with `client`."""
    outcomes: list[EditOutcome] = []
    left = iter(planned)
    clock = asyncio.get_running_loop().time
    start = clock()

    async def send(edit: Planned, at_s: float) -> None:
        def report(_: int, outcome: EditOutcome) -> None:
            sent_s, ended_s = at_s + outcome.sent_s, at_s + outcome.ended_s
            outcomes.append(EditOutcome(replace(edit, at_s=at_s), sent_s, ended_s, outcome.reply))

        await load.send(client, [edit], photos, report, timeout_s=PATIENCE_S)

    async def caller() -> None:
        while (at_s := clock() - start) < duration_s and (edit := next(left, None)):
            await send(edit, at_s)

    await asyncio.gather(*(caller() for _ in range(num_callers)))
    return outcomes


@contextmanager
def served(script: Sequence[str], first: Planned, photos: Photos) -> Iterator[tuple[str, float]]:
    """Yield the URL of a server that has answered `first`, and after how many seconds it had; then stop the server.

    script: a module of the baselines, and its options. Raises RuntimeError, with the server's output, if the server
    ends or does not answer in time.
    """
    port = free_port()
    command = [sys.executable, "-m", f"{BASELINES}.{script[0]}", *script[1:], "--port", str(port)]
    with tempfile.TemporaryFile("w+") as output:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            while (outcome := closed_loop(f"http://127.0.0.1:{port}", [first], photos)[0]).kind != "done":
                if process.poll() is not None or time.monotonic() - started > START_S:
                    output.seek(0)
                    raise RuntimeError(f"{' '.join(command)}: {outcome.reply.failure}\n{output.read()}")
                time.sleep(POLL_S)
            yield f"http://127.0.0.1:{port}", time.monotonic() - started
        finally:
            # Ray ends its own processes on this signal; a kill would leave them.
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def measure(
    name: str, url: str, settings: AgainstSettings, edits: Edits, steady_rate: float | None, say: Callable[[str], None]
) -> Record:
    """Return what one system did in one round.

    steady_rate: edits a second of the steady load; None for LOAD of what the system itself does saturated.
    """
    photos = edits.photos
    # Every batch size runs once before it is timed, because its first call allocates memory.
    closed_loop(url, [replace(edit, steps=2) for edit in edits.saturating()[: 2 * CALLERS]], photos, CALLERS)
    say("    light")
    alone = closed_loop(url, edits.light(settings.num_light), photos)
    if failed := [outcome.reply.failure for outcome in alone if outcome.kind != "done"]:
        raise RuntimeError(f"({name}): {len(failed)} of {len(alone)} edits of a single caller failed: {failed[0]}")
    say("    saturated")
    outcomes = closed_loop(url, edits.saturating(), photos, CALLERS, settings.saturated_s)
    done = pace(outcomes, FILLING * settings.saturated_s, settings.saturated_s)
    if not done.edits_per_s:
        raise RuntimeError(f"({name}): no edit done in {settings.saturated_s} s; this machine is too busy to measure")
    record: Record = {"light_s": [outcome.latency_s for outcome in alone], "saturated": done._asdict()}
    if name == "d":
        say("    light, as good")
        as_good = [replace(edit, steps=AS_GOOD_STEPS, solver="unipc") for edit in edits.light(settings.num_light)]
        record["as_good_s"] = [outcome.latency_s for outcome in closed_loop(url, as_good, photos)]
    if name in "bd":
        rate = LOAD * done.edits_per_s if steady_rate is None else steady_rate
        say(f"    steady, {rate:.2f} edits a second")
        record["steady"] = _steady(url, edits, rate, settings.steady_s)
    if name in "ad":
        rate, deadline_s = OVERLOAD * done.edits_per_s, DEADLINE * median(record["light_s"])
        say(f"    overload, {rate:.2f} edits a second, each within {deadline_s:.2f} s")
        # It lasts for many deadlines, so that its end, when nobody comes any more, counts for little.
        duration_s = max(settings.overload_s, MIN_DEADLINES * deadline_s)
        record["overload"] = _overload(url, edits, rate, duration_s, deadline_s)
    return record


def _steady(url: str, edits: Edits, rate: float, duration_s: float) -> Record:
    outcomes = load.run(url, edits.coming(rate, duration_s), edits.photos, timeout_s=PATIENCE_S)
    return {
        "rate": rate,
        "steps": [outcome.planned.steps for outcome in outcomes],
        "latency_s": [outcome.latency_s if outcome.kind == "done" else PATIENCE_S for outcome in outcomes],
        "summary": asdict(summarise(outcomes, PATIENCE_S, duration_s)),
    }


def _overload(url: str, edits: Edits, rate: float, duration_s: float, deadline_s: float) -> Record:
    planned = edits.coming(rate, duration_s, deadline_s)
    outcomes = load.run(url, planned, edits.photos, timeout_s=2 * deadline_s)
    return {
        "rate": rate,
        "good": pace(outcomes, FILLING * duration_s, duration_s, deadline_s)._asdict(),
        "summary": asdict(summarise(outcomes, deadline_s, duration_s)),
    }


def run(settings: AgainstSettings, bundle: Path, threads: int, say: Callable[[str], None]) -> list[Record]:
    """Return what every system did in every round, in the order of their turns."""
    # These are imported here because the process that sends edits imports this module, too, and needs no PyTorch.
    from export.runtime import Runtime
    from fashion_rag.bundle import Bundle
    from fashion_rag.demo.world.catalogue import ensure_demo_world
    from serve.bench.drawn import draw_photos, drawn_prompts

    say("drawing photos and a catalogue, exporting networks")
    prompts = drawn_prompts()
    persons = [Planned(0.0, category, "", person) for category in prompts for person in range(NUM_PERSONS)]
    photos = draw_photos(persons, Bundle.open(bundle).manifest)
    Runtime(str(bundle), "onnx").open()
    turns: list[Record] = []
    with tempfile.TemporaryDirectory() as world:
        catalogue = ensure_demo_world(Path(world), bundle)
        common = ("--bundle", str(bundle.resolve()), "--catalogue", str(catalogue))
        for number in range(settings.num_rounds):
            edits, steady_rate = Edits(prompts, photos, number), None
            for name, (script, *options) in scripts(threads).items():
                say(f"round {number + 1}: ({name}) {SYSTEMS[name]}")
                with served((script, *options, *common), edits.light(1)[0], photos) as (url, cold_start_s):
                    say(f"    first picture after {cold_start_s:.0f} s")
                    measured = measure(name, url, settings, edits, steady_rate, say)
                turns.append({"system": name, "round": number, "cold_start_s": cold_start_s, **measured})
                if name == "b":
                    steady_rate = measured["steady"]["rate"]
    return turns


def scripts(threads: int) -> dict[str, tuple[str, ...]]:
    """Return the module and options that start each system, in the order of their turns: (b) sets the rate for (d).

    threads: of each of our networks.
    """
    ours = ("ours", "--threads", str(threads), "--backend")
    return {"a": ("eager",), "b": ("batched",), "c": (*ours, "torch"), "d": (*ours, "onnx")}


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Picture to write.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One short round, to see that everything runs.")] = False,
    rounds: Annotated[int | None, typer.Option(help="Number of rounds.", show_default="3, or 1 with --quick")] = None,
    bundle: Annotated[Path, typer.Option(help="Model bundle.")] = DEMO_BUNDLE,
    threads: Annotated[
        int | None, typer.Option(help="Threads of each of our networks.", show_default="one a core")
    ] = None,
) -> None:
    """Measure our server beside what one would use instead."""
    from fashion_rag.provenance import provenance, write_figure, write_result

    settings, threads = QUICK if quick else AgainstSettings(), threads or os.cpu_count() or 1
    settings = replace(settings, num_rounds=rounds or settings.num_rounds)
    started = time.monotonic()

    def say(message: str) -> None:
        print(f"{time.monotonic() - started:5.0f} s  {message}", file=sys.stderr)

    turns = run(settings, bundle, threads, say)
    claims = rows(turns)
    write_result(
        out,
        {
            "from": provenance(),
            "settings": asdict(settings) | {"threads": threads},
            "duration_s": time.monotonic() - started,
            "claims": [row.as_record() for row in claims],
            "turns": turns,
        },
    )
    typer.echo(table(claims), nl=False)
    if plot_file:
        write_figure(plot_file, plot(claims, turns))
