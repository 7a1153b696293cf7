"""Tests a real graph when things go wrong: odd uploads, dead replicas, callers who leave, overload, and redeployment.

Settings come by `serve deploy`, as an operator's do. The graph that the other tests know is put back at the end.
"""

import asyncio
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
import numpy as np
import pytest
import ray
from numpy.typing import NDArray
from PIL import Image
from ray import serve as ray_serve
from ray.util.state import list_actors

from fashion_rag.artifacts import write_json
from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.garments import garments_in
from fashion_rag.pipeline import Pipeline
from serve import app
from serve.config import ServeConfig
from serve.config_file import Graph
from serve.graph import build
from tests.serve.client import PATIENCE_S, decoded, edit, empty, expected, exported, form, same, total, until
from tests.serve.pictures import SIZE, mask, photo, png
from tests.tiny import make_tiny_catalogue
from tests.waiting import wait_for

Settings = dict[str, dict[str, Any]]
Deploy = Callable[[ServeConfig, Settings], None]
Changes = dict[str, Any]
Answer = tuple[float, httpx.Response]

DEPLOYMENTS = ("Ingress", "Denoiser", "Conditioner", "Retriever", "Parser", "VAE")
# Room for all that a test sends at once.
ROOMY: Settings = {"Ingress": {"max_edits": 100, "max_edits_per_key": 100}, "Denoiser": {"max_waiting": 100}}
# Long enough for a test to look in; the tiny bundle's schedule has room for a few more.
MANY_STEPS = 900
MANY_EDITS = 40

# Which stage to hold up for a while, so that a kill finds calls in the deployment, however fast the machine is. The
# conditioner waits for the retriever; the denoiser and the ingress wait for the VAE.
HELD_UP = {
    "Retriever": "Retriever",
    "Conditioner": "Retriever",
    "VAE": "VAE",
    "Denoiser": "VAE",
    "Ingress": "VAE",
    "Stages": "Stages",
}
ONE_BY_ONE: Settings = {"Retriever": {"max_batch": 1}, "VAE": {"max_batch": 1}}
ONE_BY_ONE_TOGETHER: Settings = {"Stages": {"retriever": {"max_batch": 1}, "vae": {"max_batch": 1}}}

OVERLOAD = 5
OVERLOAD_S = 30.0
# Three times what the last of those who are let in waits, on a machine that others use as well.
DEADLINE_S = 30.0
# Were one picture kept of each edit that is finished meanwhile, it would be 90 MB or more, and 200 MB of each refused.
MAX_GROWN_BYTES = 64_000_000


@pytest.fixture(scope="module")
def deploy(url: str, config: ServeConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deploy]:
    """Deploy a graph, with settings by deployment, on the running Serve; return when all of it is ready."""
    file = tmp_path_factory.mktemp("deploy") / "graph.yaml"
    command = [str(Path(sys.executable).with_name("serve")), "deploy", str(file)]
    address = {"RAY_DASHBOARD_ADDRESS": dashboard()}

    def bring(graph: ServeConfig, settings: Settings) -> None:
        deployments = [{"name": name, "user_config": user_config} for name, user_config in settings.items()]
        # JSON is YAML.
        write_json(file, Graph(graph.to_args(), deployments).as_config())
        subprocess.run(command, env=os.environ | address, check=True, capture_output=True)
        wait_for(lambda: ray_serve.status().applications[app.APP_NAME].status == "RUNNING")

    yield bring
    ray_serve.run(build(config), name=app.APP_NAME)


@pytest.fixture
def roomy(url: str, deploy: Deploy, config: ServeConfig) -> str:
    """Yield the URL of the graph, which has room for many edits."""
    deploy(config, ROOMY)
    return url


@pytest.fixture(scope="module")
def wanted(pipeline: Pipeline) -> list[NDArray[np.uint8]]:
    """Return the pictures of `mixed_edits()`."""
    return [expected(pipeline, **changes) for changes in mixed_edits()]


def mixed_edits() -> list[Changes]:
    draw = random.Random(0)
    return [
        {
            "seed": seed,
            "steps": draw.randint(4, 40),
            "guidance_scale": draw.choice((1.0, 3.0)),
            "num_garments": draw.randint(0, 3),
        }
        for seed in range(MANY_EDITS)
    ]


def dashboard() -> str:
    """Return the address of the dashboard of this test's Ray, as others may run on this machine."""
    return f"http://{ray._private.worker.get_dashboard_url()}"  # type: ignore[no-untyped-call]


def pids(deployment: str) -> list[int]:
    """Return the processes of the replicas of a deployment."""
    filters = [("class_name", "=", f"ServeReplica:{app.APP_NAME}:{deployment}"), ("state", "=", "ALIVE")]
    return [actor.pid for actor in list_actors(dashboard(), filters=filters) if actor.pid]


def outcome(reply: httpx.Response) -> NDArray[np.uint8]:
    """Return the picture in a reply, or at the end of a stream."""
    reply.raise_for_status()
    if reply.headers["content-type"] == "application/json":
        return decoded(reply.json()["data"][0]["b64_json"])
    *_, last = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: ")]
    assert "b64_json" in last, last
    return decoded(last["b64_json"])


def saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, format=file_format, **options)
    return content.getvalue()


def odd_uploads() -> dict[str, tuple[bytes, NDArray[np.uint8]]]:
    """Return files that all show a photo of SIZE, and the RGB that each is to be read as."""
    upright = Image.fromarray(photo())
    grey = upright.convert("L")
    exif = Image.Exif()
    # To be turned by a quarter: how a phone that is held upright saves.
    exif[0x0112] = 6
    lying = saved(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=100)
    few = upright.quantize(16)
    few_rgb = np.asarray(few.convert("RGB"))
    opaque = np.asarray(few) != 3
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    cmyk = saved(upright.convert("CMYK"), "JPEG", quality=100)
    webp, gif = saved(upright, "WEBP", lossless=True), saved(few, "GIF", save_all=True, append_images=[few.rotate(180)])
    see_through = upright.copy()
    see_through.putalpha(Image.fromarray(np.where(mask(), 0, 255).astype(np.uint8)))

    def rgb(image: Image.Image) -> NDArray[np.uint8]:
        return np.asarray(image.convert("RGB"))

    return {
        "turned": (lying, rgb(Image.open(io.BytesIO(lying)).transpose(Image.Transpose.ROTATE_270))),
        "cmyk": (cmyk, rgb(Image.open(io.BytesIO(cmyk)))),
        "grey": (saved(grey, "PNG"), rgb(grey)),
        "palette": (saved(few, "PNG", transparency=3), np.where(opaque[..., None], few_rgb, 255).astype(np.uint8)),
        "16 bits": (saved(deep, "PNG"), rgb(grey)),
        "alpha": (saved(see_through, "PNG"), photo()),
        "webp": (webp, photo()),
        "animated": (gif, few_rgb),
    }


@pytest.mark.parametrize("kind", odd_uploads())
def test_a_photo_as_people_send_them(url: str, kind: str) -> None:
    content, seen = odd_uploads()[kind]
    shown = outcome(edit(url, image=content))
    assert shown.shape == (*SIZE, 3)
    outside = mask() == 0
    assert np.array_equal(shown[outside], seen[outside])


def test_transparent_and_white_mark_the_same(url: str) -> None:
    white = outcome(edit(url))
    for colour in (photo(), np.zeros((*SIZE, 3), np.uint8)):
        assert np.array_equal(outcome(edit(url, mask=png(np.dstack([colour, 255 - mask()])))), white)


@contextmanager
def stopped(deployment: str) -> Iterator[None]:
    """Stop the replicas of a deployment while the block runs."""
    held = pids(deployment)
    for pid in held:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in held:
            os.kill(pid, signal.SIGCONT)


def num_repeated(deployment: str) -> float:
    """Return the calls of a deployment that were made again because a replica died, as far as they have been
    reported.
    """
    if deployment == "Ingress":
        logs = Path(ray._private.worker.global_worker.node.get_session_dir_path()) / "logs" / "serve"
        return sum(path.read_text().count("got no response in attempt") for path in logs.glob("proxy_*.log"))
    stages = {"Retriever": ("retrieve",), "Conditioner": ("condition",), "Denoiser": ("denoise",)}
    text = exported()
    stages_of = stages.get(deployment, ("encode", "decode"))
    return sum(total(text, "fashion_rag_retries_total", stage=stage) for stage in stages_of)


@pytest.mark.slow
@pytest.mark.parametrize("deployment", HELD_UP)
def test_a_replica_that_is_killed_costs_no_edit(
    url: str, deploy: Deploy, config: ServeConfig, wanted: list[NDArray[np.uint8]], deployment: str
) -> None:
    if deployment == "Stages":
        deploy(replace(config, one_process=True), ROOMY | ONE_BY_ONE_TOGETHER)
    else:
        deploy(config, ROOMY | ONE_BY_ONE)
    num_before, num_calls_before = num_repeated(deployment), asyncio.run(until(empty))
    (pid,) = pids(deployment)
    # A stream ends with the ingress that sends it, so there are none where that is killed.
    streams = "false" if deployment == "Ingress" else "true"
    asked = [changes | {"stream": streams if changes["seed"] % 3 else "false"} for changes in mixed_edits()]
    with httpx.Client(timeout=PATIENCE_S, limits=httpx.Limits()) as client, ThreadPoolExecutor(MANY_EDITS) as pool:
        with stopped(HELD_UP[deployment]):
            posts = [pool.submit(client.post, f"{url}/v1/images/edits", **form(**changes)) for changes in asked]
            asyncio.run(until(lambda num_edits, _: num_edits >= MANY_EDITS - 4))
        asyncio.run(until(lambda _, num_calls: num_calls > num_calls_before))
        assert not all(post.done() for post in posts)
        os.kill(pid, signal.SIGKILL)
        replies = [post.result() for post in posts]
    for reply, changes, picture in zip(replies, asked, wanted, strict=True):
        assert same(outcome(reply), picture), changes
    wait_for(lambda: num_repeated(deployment) > num_before)


async def leave(url: str, ready: Callable[[int, int], bool], **changes: Any) -> int:
    """Have the caller of an edit leave when the denoiser is `ready`; return the UNet calls after that."""
    async with httpx.AsyncClient(timeout=None) as client:
        post = asyncio.create_task(client.post(f"{url}/v1/images/edits", **form(steps=MANY_STEPS, **changes)))
        left = await until(ready)
        post.cancel()
        await asyncio.wait([post])
    await until(empty)
    # The call that was running may still come to its end. Were the edit to run on, it would do so to its last step.
    gone = -1
    while (now := await until(empty)) != gone:
        gone = now
        await asyncio.sleep(0.5)
    return gone - left


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"stream": "true", "partial_images": 9}, {"n": 3}], ids=str)
def test_a_caller_who_leaves_frees_the_rows(roomy: str, changes: Changes) -> None:
    before, count = asyncio.run(until(empty)), changes.get("n", 1)
    steps = asyncio.run(leave(roomy, lambda edits, calls: edits == count and calls > before + 20, **changes))
    # Those that pass while the news travels.
    assert steps < MANY_STEPS // 10


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_caller_who_leaves_before_the_first_step_costs_none(roomy: str, stream: str) -> None:
    before = asyncio.run(until(empty))
    with stopped("Retriever"):
        assert asyncio.run(leave(roomy, lambda num_edits, _: num_edits == 1, stream=stream)) == 0
    assert outcome(edit(roomy, steps=1)).shape == (*SIZE, 3)
    assert asyncio.run(until(empty)) == before + 1


async def closed_loop(url: str, seconds: float, **changes: Any) -> float:
    """Return the edits a second of clients who each wait for an edit before they send the next."""
    started, num_done = time.monotonic(), 0

    async def ask(client: httpx.AsyncClient) -> None:
        nonlocal num_done
        while time.monotonic() < started + seconds:
            reply = await client.post(f"{url}/v1/images/edits", **form(**changes))
            assert reply.status_code == 200, reply.text
            num_done += 1

    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        await asyncio.gather(*(ask(client) for _ in range(10)))
    # The clients have begun together, so their last edits end about together too.
    return num_done / (time.monotonic() - started)


async def open_loop(url: str, rate: float, seconds: float, **changes: Any) -> list[Answer]:
    """Send `rate` edits a second, whether they are answered or not, every other as a stream; return replies and times.

    An answer has the seconds until the reply, and the reply.
    """

    async def ask(client: httpx.AsyncClient, number: int) -> Answer:
        await asyncio.sleep(number / rate)
        asked = time.monotonic()
        stream = "true" if number % 2 else "false"
        reply = await client.post(f"{url}/v1/images/edits", **form(stream=stream, **changes))
        return time.monotonic() - asked, reply

    async with httpx.AsyncClient(timeout=PATIENCE_S, limits=httpx.Limits()) as client:
        return await asyncio.gather(*(ask(client, number) for number in range(int(rate * seconds))))


def resident_bytes() -> dict[str, int]:
    """Return how much memory the replicas have."""
    page = os.sysconf("SC_PAGE_SIZE")
    return {
        name: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
        for name in DEPLOYMENTS
        for pid in pids(name)
    }


@pytest.mark.slow
def test_too_much_for_a_while(url: str, deploy: Deploy, config: ServeConfig) -> None:
    """What is taken on is finished in time, the rest is refused at once, and no memory is lost."""
    deploy(config, {"Ingress": config.ingress.to_args(), "Denoiser": config.denoiser.to_args()})
    changes: Changes = {"steps": 60, "size": "540x720", "output_format": "jpeg", "deadline_s": DEADLINE_S}
    picture = outcome(edit(url, **changes)).astype(int)
    capacity = asyncio.run(closed_loop(url, 5, **changes))

    async def flood() -> tuple[dict[str, int], list[Answer]]:
        answers = asyncio.create_task(open_loop(url, OVERLOAD * capacity, OVERLOAD_S, **changes))
        await asyncio.sleep(OVERLOAD_S / 3)
        return await asyncio.to_thread(resident_bytes), await answers

    started = time.monotonic()
    before, answers = asyncio.run(flood())
    seconds = time.monotonic() - started
    grown = {name: size - before[name] for name, size in resident_bytes().items()}
    done = [reply for _, reply in answers if reply.status_code == 200]
    refused = [(took_s, reply) for took_s, reply in answers if reply.status_code in (429, 503)]
    times_s = [took_s for took_s, _ in refused]
    print(f"\n{len(done)} of {len(answers)} edits done: {len(done) / seconds:.2f}/s of {capacity:.2f}/s before")
    print(f"a refusal takes {median(times_s):.3f} s, p95 {quantiles(times_s, n=20)[-1]:.3f} s; grown: {grown} bytes")

    assert [reply.text for _, reply in answers if reply.status_code not in (200, 429, 503)] == []
    assert all(int(reply.headers["retry-after"]) >= 1 for _, reply in refused)
    # JPEG makes a little more of a difference in the last digit.
    assert all(np.abs(outcome(reply) - picture).mean() < 1 for reply in done)
    assert len(refused) > len(answers) / 2
    assert done
    assert max(grown.values()) < MAX_GROWN_BYTES


@pytest.mark.slow
def test_settings_change_while_edits_run(roomy: str, deploy: Deploy, config: ServeConfig, pipeline: Pipeline) -> None:
    async def calls_of_two() -> int:
        before = await until(empty)
        await asyncio.gather(*(asyncio.to_thread(edit, roomy, steps=100) for _ in range(2)))
        return await until(empty) - before

    small: Settings = {
        "Ingress": {"max_edits": 2, "max_edits_per_key": 2, "presets": {"draft": {"steps": 2}}},
        "Denoiser": {"max_rows": 2},
    }
    before = {name: pids(name) for name in DEPLOYMENTS}
    assert edit(roomy, preset="draft").json()["error"]["field"] == "preset"
    assert asyncio.run(calls_of_two()) < 200
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(edit, roomy, steps=MANY_STEPS, n=2)
        asyncio.run(until(lambda num_edits, _: num_edits == 2))
        deploy(config, small)
        refused = edit(roomy)
        assert not running.done()
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "Overloaded")
        assert same(outcome(running.result()), expected(pipeline, steps=MANY_STEPS))
    assert same(outcome(edit(roomy, preset="draft")), expected(pipeline, steps=2))
    assert asyncio.run(calls_of_two()) == 200
    assert {name: pids(name) for name in DEPLOYMENTS} == before


@pytest.mark.slow
def test_an_edit_asked_again_is_not_denoised_again(
    roomy: str, deploy: Deploy, config: ServeConfig, pipeline: Pipeline
) -> None:
    deploy(config, {"Denoiser": {"results_bytes": 10_000_000}})

    def calls_of(**changes: Any) -> int:
        before = asyncio.run(until(empty))
        assert same(outcome(edit(roomy, **changes)), expected(pipeline, **changes))
        return asyncio.run(until(empty)) - before

    assert calls_of(steps=7) == 7
    assert calls_of(steps=7) == 0
    others: list[Changes] = [
        {"seed": 99},
        {"prompt": "blue dress"},
        {"guidance_scale": 1.0},
        {"solver": "unipc"},
        {"garment_ids": ["blue-dress"]},
    ]
    assert [calls_of(steps=7, **changes) for changes in others] == [7] * len(others)
    assert calls_of(steps=7) == 0
    deploy(config, {"Denoiser": {"results_bytes": 0}})
    assert calls_of(steps=7) == 7


@pytest.mark.slow
def test_a_denoiser_is_pinned_to_cores_while_it_runs(
    url: str, deploy: Deploy, config: ServeConfig, pipeline: Pipeline
) -> None:
    def cores() -> set[frozenset[int]]:
        (pid,) = pids("Denoiser")
        tasks = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
        return {frozenset(os.sched_getaffinity(task)) for task in tasks}

    (all_cores,) = cores()
    if len(all_cores) < 2:
        pytest.skip("needs two cores")
    before = pids("Denoiser")
    deploy(config, {"Denoiser": {"pin_cores": True}})
    wait_for(lambda: cores() == {frozenset({min(all_cores)})})
    assert same(outcome(edit(url)), expected(pipeline))
    assert cores() == {frozenset({min(all_cores)})}
    deploy(config, {"Denoiser": {"pin_cores": False}})
    wait_for(lambda: cores() == {all_cores})
    assert pids("Denoiser") == before


@contextmanager
def load(
    url: str, asked: Sequence[Changes], num_clients: int, pause_s: float = 0.0
) -> Iterator[list[tuple[int, httpx.Response]]]:
    """Have clients send the edits `asked` again and again during the block; replies come with their edits' numbers."""
    replies: list[tuple[int, httpx.Response]] = []
    enough = threading.Event()

    def ask(number: int) -> None:
        while not enough.is_set():
            replies.append((number, client.post(f"{url}/v1/images/edits", **form(**asked[number]))))
            number = (number + num_clients) % len(asked)
            time.sleep(pause_s)

    with httpx.Client(timeout=PATIENCE_S) as client, ThreadPoolExecutor(num_clients) as pool:
        asks = [pool.submit(ask, number) for number in range(num_clients)]
        try:
            yield replies
        finally:
            enough.set()
        for each in asks:
            each.result()


@pytest.mark.slow
def test_a_new_catalogue_comes_while_edits_run(
    roomy: str, deploy: Deploy, config: ServeConfig, pipeline: Pipeline, tmp_path: Path
) -> None:
    make_tiny_catalogue(tmp_path / "catalogue", Path(config.bundle))
    Image.new("RGB", (48, 64), "violet").save(tmp_path / "catalogue-pictures" / "dresses" / "violet-dress.png")
    garments = garments_in(tmp_path / "catalogue-pictures")
    Bundle.open(Path(config.bundle)).build_catalogue(tmp_path / "larger", garments, work=tmp_path / "work")
    violet: Changes = {"garment_ids": ["violet-dress"]}
    assert edit(roomy, **violet).json()["error"]["field"] == "garment_ids"

    asked: list[Changes] = [{"seed": seed, "steps": 20, "garment_ids": ["red-dress"]} for seed in range(4)]
    with load(roomy, asked, num_clients=4) as replies:
        wait_for(lambda: len(replies) >= 4)
        deploy(replace(config, catalogue=str(tmp_path / "larger")), ROOMY)
        num_then = len(replies)
        wait_for(lambda: len(replies) >= num_then + 4)
    wanted = [expected(pipeline, **changes) for changes in asked]
    assert all(same(outcome(reply), wanted[number]) for number, reply in replies)
    renewed = Pipeline.load(Path(config.bundle), tmp_path / "larger")
    assert same(outcome(edit(roomy, **violet)), expected(renewed, **violet))


@pytest.mark.slow
def test_denoisers_come_and_go_with_the_load(
    url: str, deploy: Deploy, config: ServeConfig, wanted: list[NDArray[np.uint8]]
) -> None:
    def num_denoisers() -> int:
        states = ray_serve.status().applications[app.APP_NAME].deployments["Denoiser"].replica_states
        return states.get("RUNNING", 0)

    deploy(replace(config, max_replicas=2, target_load=0.1, upscale_delay_s=1.0, downscale_delay_s=2.0), ROOMY)
    assert num_denoisers() == 1
    with load(url, mixed_edits(), num_clients=8) as replies:
        wait_for(lambda: num_denoisers() == 2)
        num_then = len(replies)
        wait_for(lambda: len(replies) >= num_then + MANY_EDITS)
    with load(url, mixed_edits(), num_clients=1, pause_s=5.0) as few:
        wait_for(lambda: num_denoisers() == 1)
    assert all(same(outcome(reply), wanted[number]) for number, reply in replies + few)
