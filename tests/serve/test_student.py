"""Edits by a bundle's student, which a graph serves by denoisers of their own."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from ray import serve as ray_serve

from fashion_rag.pipeline import Pipeline
from serve import app
from serve.config import ServeConfig
from serve.graph import build
from tests.serve.client import PATIENCE_S, edit, expected, picture, same

NAME = "student"
TURBO = {"student": True, "steps": 4, "guidance_scale": 1}


@pytest.fixture(scope="module")
def student_url(url: str, config: ServeConfig, tiny_student_bundle: Path) -> Iterator[str]:
    """Yield the URL of a graph of a bundle with a student, beside the graph of the other tests."""
    changes = {"bundle": str(tiny_student_bundle), "backend": "torch", "compiled": None, "replica_cpus": 0.05}
    ray_serve.run(build(replace(config, **changes, one_process=True, student=True)), name=NAME, route_prefix=f"/{NAME}")
    yield f"{url}/{NAME}"
    ray_serve.delete(NAME)


@pytest.fixture(scope="module")
def student_pipeline(tiny_student_bundle: Path, tiny_catalogue: Path, pipeline: Pipeline) -> Pipeline:
    return Pipeline.load(tiny_student_bundle, tiny_catalogue)


@pytest.mark.parametrize(
    "asked", [{"preset": "turbo"}, {"quality": "low", "seed": 8}, {"preset": "turbo", "steps": 2, "num_garments": 0}]
)
def test_the_students_picture_is_the_pipelines(
    student_url: str, student_pipeline: Pipeline, asked: dict[str, Any]
) -> None:
    meant = TURBO | {name: value for name, value in asked.items() if name not in ("preset", "quality")}
    shown = picture(edit(student_url, **asked))
    assert same(shown, expected(student_pipeline, **meant))
    other = picture(edit(student_url, steps=meant["steps"], guidance_scale=1, seed=meant.get("seed", 5)))
    assert not np.array_equal(shown, other)


def test_edits_of_student_and_teacher_do_not_mix(student_url: str, student_pipeline: Pipeline) -> None:
    asked: list[dict[str, Any]] = []
    for seed in range(4):
        asked += [TURBO | {"seed": seed}, {"seed": seed, "steps": 5}, {"seed": seed, "steps": 3, "solver": "unipc"}]
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda changes: picture(edit(student_url, **changes)), asked))
    for shown, changes in zip(together, asked, strict=True):
        assert same(shown, expected(student_pipeline, **changes)), changes


def test_the_student_is_a_stage_of_its_own(student_url: str) -> None:
    stages = httpx.get(f"{student_url}/readyz", timeout=PATIENCE_S).raise_for_status().json()["stages"]
    assert stages["student_denoiser"] and stages["denoiser"]
    deployments = ray_serve.status().applications[NAME].deployments
    assert "StudentDenoiser" in deployments and "Denoiser" in deployments


def test_a_graph_without_a_student_offers_none(url: str) -> None:
    reply = edit(url, preset="turbo")
    assert reply.status_code == 400
    assert "needs a preset that this server has: fast, balanced, exact" in reply.json()["error"]["message"]
    assert edit(url, student=True).status_code == 400
    assert edit(url, quality="low", steps=1).status_code == 200


def test_a_bundles_student_is_served_where_nothing_else_is_said(tiny_bundle: Path, tiny_student_bundle: Path) -> None:
    assert app.local_config(tiny_student_bundle, "memory://c").student
    assert not app.local_config(tiny_student_bundle, "memory://c", student=False).student
    assert not app.local_config(tiny_bundle, "memory://c").student
