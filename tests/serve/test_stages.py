"""Tests stages that share a process: they are called as in processes of their own, and give the same pictures."""

import asyncio
import os
import pickle
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from ray import serve as ray_serve
from ray.util.state import list_actors

from fashion_rag.pipeline import Pipeline
from serve import app
from serve.config import BatchSettings, ServeConfig, StagesSettings
from serve.graph import build
from serve.handles import StageHandle, StageHere
from serve.stages import Stages
from tests.serve.client import CATALOGUE_KEY, PATIENCE_S, edit, expected, exported, picture, same, total
from tests.serve.pictures import photo, png
from tests.waiting import wait_for

NAME = "together"


class Recorder:
    """Stands for the handle of a deployment; its calls return what they were called with."""

    @property
    def call(self) -> "Recorder":
        return self

    def remote(self, *args: Any) -> tuple[Any, ...]:
        return args


def test_a_handle_of_a_stage_names_stage_and_method() -> None:
    handle: Any = pickle.loads(pickle.dumps(StageHandle(Recorder(), "vae")))  # type: ignore[arg-type]
    assert handle.encode.remote(1, 2) == ("vae", "encode", 1, 2)
    assert handle.ping.remote() == ("vae", "ping")


def test_a_stage_in_the_same_process_is_called_like_one_in_another() -> None:
    class Stage:
        ended = False

        async def double(self, number: int) -> int:
            return 2 * number

        async def wait(self) -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                self.ended = True

    async def run(stage: Any) -> None:
        here: Any = StageHere(stage)
        assert await here.double.remote(3) == 6
        waiting = here.wait.remote()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    stage = Stage()
    asyncio.run(run(stage))
    assert stage.ended


def test_stages_share_a_process_only_where_they_have_one_replica_and_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_has_gpu", lambda: False)
    assert app.local_config(tmp_path, "memory://c").one_process
    assert not app.local_config(tmp_path, "memory://c", max_replicas=2).one_process
    assert not app.local_config(tmp_path, "memory://c", replica_gpus=0.25).one_process
    assert not app.local_config(tmp_path, "memory://c", one_process="false").one_process
    monkeypatch.setattr(app, "_has_gpu", lambda: True)
    assert not app.local_config(tmp_path, "memory://c").one_process
    assert app.local_config(tmp_path, "memory://c", one_process=True).one_process
    assert not ServeConfig("b", "c").one_process


def test_settings_of_a_stage_are_checked() -> None:
    assert StagesSettings.from_args({"vae": {"max_batch": 3}}).vae.max_batch == 3
    for wrong in ({"vae": {"max_batch": 0}}, {"denoiser": {}}, {"parser": {"max_rows": 2}}):
        with pytest.raises(ValueError, match=r"max_batch|denoiser|max_rows"):
            StagesSettings.from_args(wrong)


def test_settings_and_health_are_those_of_each_stage() -> None:
    class Stage:
        took: dict[str, Any] | None = None

        def reconfigure(self, user_config: dict[str, Any]) -> None:
            self.took = user_config

    class WatchingStage(Stage):
        async def reconfigure(self, user_config: dict[str, Any]) -> None:  # type: ignore[override]
            await asyncio.sleep(0)
            self.took = user_config

        def check_health(self) -> None:
            raise RuntimeError("the watch has ended")

    shared: Any = object.__new__(Stages.func_or_class)  # type: ignore[attr-defined]
    shared.stages = {"retriever": WatchingStage(), "parser": Stage(), "conditioner": Stage(), "vae": Stage()}
    settings = StagesSettings(vae=BatchSettings(max_batch=3)).to_args()
    asyncio.run(shared.reconfigure(settings))
    assert {name: stage.took for name, stage in shared.stages.items()} == settings
    with pytest.raises(RuntimeError, match="the watch has ended"):
        shared.check_health()


@pytest.fixture(scope="module")
def together(url: str, config: ServeConfig) -> Iterator[str]:
    """Yield the URL of a graph whose stages share a process, beside the graph of the other tests."""
    target = build(replace(config, one_process=True, replica_cpus=0.05))
    ray_serve.run(target, name=NAME, route_prefix=f"/{NAME}")
    yield f"{url}/{NAME}"
    ray_serve.delete(NAME)


def processes() -> dict[str, int]:
    """Return the process of each deployment's replica."""
    address = f"http://{ray._private.worker.get_dashboard_url()}"  # type: ignore[no-untyped-call]
    prefix = f"ServeReplica:{NAME}:"
    actors = list_actors(address, filters=[("state", "=", "ALIVE")], limit=1000)
    return {actor.class_name.removeprefix(prefix): actor.pid for actor in actors if actor.class_name.startswith(prefix)}


def test_there_are_three_processes(together: str) -> None:
    assert set(processes()) == set(app.LOADS_IN_ONE_PROCESS)
    stages = httpx.get(f"{together}/readyz", timeout=PATIENCE_S).json()["stages"]
    assert stages == dict.fromkeys(("retriever", "parser", "conditioner", "vae", "denoiser"), True)


@pytest.mark.parametrize("changes", [{}, {"num_garments": 3, "seed": 9}, {"num_garments": 0, "template": "caption"}])
def test_the_picture_is_the_pipelines(together: str, pipeline: Pipeline, changes: dict[str, Any]) -> None:
    reply = edit(together, **changes)
    assert same(picture(reply), expected(pipeline, **changes))
    assert set(reply.json()["timings_ms"]) == {"retrieve", "condition", "encode", "denoise", "decode"}


def test_what_a_stage_refuses_is_refused_by_name(together: str) -> None:
    reply = edit(together, garment_ids=["no-such-dress"])
    assert (reply.status_code, reply.json()["error"]["field"]) == (400, "garment_ids")
    # The tiny bundle has no human parser.
    reply = httpx.post(f"{together}/v1/images/masks", files={"image": png(photo())}, timeout=PATIENCE_S)
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "InvalidRequest")


def test_the_catalogue_can_be_searched_and_changed(together: str) -> None:
    headers = {"authorization": f"Bearer {CATALOGUE_KEY}"}
    fields = {"id": "new-dress", "category": "dresses", "caption": "new dress"}
    posted = httpx.post(
        f"{together}/v1/garments", files={"image": png(photo())}, data=fields, headers=headers, timeout=PATIENCE_S
    )
    try:
        assert posted.status_code in (200, 201), posted.text
        found = httpx.get(f"{together}/v1/garments/search", params={"q": "dress", "category": "dresses"}).json()
        assert "new-dress" in [garment["id"] for garment in found["data"]]
    finally:
        httpx.delete(f"{together}/v1/garments/new-dress", headers=headers, timeout=PATIENCE_S)


def test_metrics_are_those_of_each_stage(together: str) -> None:
    edit(together).raise_for_status()

    def counted(stage: str) -> float:
        return total(exported(), "fashion_rag_stage_seconds_count", stage=stage, application=NAME, deployment="Stages")

    wait_for(lambda: all(counted(stage) for stage in ("retrieve", "condition", "encode", "decode")))


def test_their_death_costs_a_retry(together: str, pipeline: Pipeline) -> None:
    before = processes()["Stages"]
    os.kill(before, signal.SIGKILL)
    assert same(picture(edit(together, seed=3)), expected(pipeline, seed=3))
    wait_for(lambda: processes().get("Stages") not in (None, before))
    stages = httpx.get(f"{together}/readyz", timeout=PATIENCE_S).json()["stages"]
    assert all(stages.values())
