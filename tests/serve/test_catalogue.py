"""Tests the catalogue over HTTP: it is searched in three ways, changed while it is served, and replaced under load."""

import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.changes import GarmentAdded, append
from fashion_rag.catalogue.garments import INVERSION, Garment, StoredPicture
from fashion_rag.catalogue.storage import Root
from fashion_rag.catalogue.table import GarmentRow
from fashion_rag.catalogue.versions import current
from fashion_rag.pipeline import Pipeline
from serve.config import ServeConfig
from tests.serve.client import CATALOGUE_KEY, PATIENCE_S, edit, expected, picture, same
from tests.serve.pictures import png
from tests.serve.test_app import another_ingress
from tests.waiting import wait_for

EDITOR = {"authorization": f"Bearer {CATALOGUE_KEY}"}


def garment_picture(colour: str) -> bytes:
    image = Image.new("RGB", (48, 64), "white")
    image.paste(colour, (12, 8, 36, 56))
    return png(np.asarray(image))


def add(url: str, headers: dict[str, str] = EDITOR, **changes: Any) -> httpx.Response:
    parts = {"image": garment_picture("violet"), "id": "violet-dress", "category": "dresses"} | changes
    image = parts.pop("image")
    fields = {name: value for name, value in parts.items() if value is not None}
    files = {} if image is None else {"image": image}
    # A form with nothing but fields would not be multipart.
    return httpx.post(f"{url}/v1/garments", headers=headers, files=files or {"x": b""}, data=fields, timeout=PATIENCE_S)


def delete(url: str, garment_id: str) -> httpx.Response:
    return httpx.delete(f"{url}/v1/garments/{garment_id}", headers=EDITOR, timeout=PATIENCE_S)


@contextmanager
def added(url: str, garment_id: str, **changes: Any) -> Iterator[dict[str, Any]]:
    yield add(url, id=garment_id, **changes).raise_for_status().json()
    assert delete(url, garment_id).status_code == 204


def found(reply: httpx.Response) -> list[str]:
    return [garment["id"] for garment in reply.raise_for_status().json()["data"]]


def test_a_garment_is_added_worn_replaced_and_deleted(url: str, config: ServeConfig) -> None:
    def pipeline() -> Pipeline:
        return Pipeline.load(Path(config.bundle), config.catalogue)

    assert edit(url, garment_ids=["violet-dress"]).json()["error"]["field"] == "garment_ids"
    reply = add(url, caption="a violet dress", attributes=["colour=violet", "size=S", "size=M"])
    assert reply.status_code == 201
    body = reply.json()
    assert (body["id"], body["caption"]) == ("violet-dress", "a violet dress")
    assert body["attributes"] == {"colour": ["violet"], "size": ["S", "M"]}
    assert httpx.get(f"{url}/v1/garments/violet-dress").json() == body
    shown = httpx.get(f"{url}{body['image_url']}", timeout=PATIENCE_S)
    assert Image.open(io.BytesIO(shown.content)).size == (48, 64)
    violet = picture(edit(url, garment_ids=["violet-dress"]))
    assert same(violet, expected(pipeline(), garment_ids=["violet-dress"]))

    assert add(url, image=garment_picture("orange")).status_code == 201
    orange = picture(edit(url, garment_ids=["violet-dress"]))
    assert same(orange, expected(pipeline(), garment_ids=["violet-dress"]))
    # Both are of the same code on the same machine, so any difference shows that the garment was replaced.
    assert not np.array_equal(orange, violet)

    assert delete(url, "violet-dress").status_code == 204
    assert httpx.get(f"{url}/v1/garments/violet-dress").status_code == 404
    assert delete(url, "violet-dress").status_code == 404
    assert edit(url, garment_ids=["violet-dress"]).json()["error"]["field"] == "garment_ids"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"image": None}, "image"),
        ({"image": b"no picture"}, "image"),
        ({"id": None}, "id"),
        ({"id": "../../etc/passwd"}, "id"),
        ({"id": ".hidden"}, "id"),
        ({"category": "hats"}, "category"),
        ({"caption": "x" * 3000}, "caption"),
        ({"attributes": ["colour"]}, "attributes"),
        ({"id": "search"}, "id"),
        ({"id": "a/b"}, "id"),
        ({"id": "100%"}, "id"),
        ({"id": ".."}, "id"),
        ({"attributes": [f"name{number}=x" for number in range(33)]}, "attributes"),
        ({"prompt": "no field of a garment"}, "prompt"),
    ],
)
def test_a_wrong_garment_is_refused_by_name(url: str, config: ServeConfig, changes: dict[str, Any], field: str) -> None:
    before = Bundle.open(Path(config.bundle)).open_catalogue(config.catalogue).version
    reply = add(url, **changes)
    assert (reply.status_code, reply.json()["error"]["field"]) == (400, field)
    assert Bundle.open(Path(config.bundle)).open_catalogue(config.catalogue).version == before


def test_only_who_has_a_key_may_change_the_catalogue(url: str, config: ServeConfig) -> None:
    for headers in ({}, {"authorization": "Bearer something"}):
        assert add(url, headers=headers).status_code == 401
        assert httpx.delete(f"{url}/v1/garments/red-dress", headers=headers).status_code == 401
    with another_ingress(url, replace(config, catalogue_keys=None)) as closed:
        reply = add(closed)
        assert (reply.status_code, reply.json()["error"]["type"]) == (403, "Forbidden")
        assert httpx.delete(f"{closed}/v1/garments/red-dress", headers=EDITOR).status_code == 403
    assert httpx.get(f"{url}/v1/garments/red-dress").status_code == 200


def test_garments_are_found_by_picture_and_by_likeness(url: str, pipeline: Pipeline) -> None:
    assert pipeline.catalogue is not None
    blue = pipeline.catalogue.get("blue-dress").picture.read_bytes()
    form = {"category": "dresses", "limit": "2"}
    first = httpx.post(f"{url}/v1/garments/search", files={"image": blue}, data=form, timeout=PATIENCE_S)
    assert found(first)[0] == "blue-dress" and len(found(first)) == 2
    assert first.json()["data"][0]["score"] == pytest.approx(1, abs=1e-5)
    similar = found(httpx.get(f"{url}/v1/garments/blue-dress/similar", timeout=PATIENCE_S))
    assert len(similar) == 3 and similar[0] == found(first)[1]
    assert httpx.get(f"{url}/v1/garments/no-such/similar").status_code == 404
    wrong = httpx.post(f"{url}/v1/garments/search", files={"image": b"none"}, data=form, timeout=PATIENCE_S)
    assert (wrong.status_code, wrong.json()["error"]["field"]) == (400, "image")


def test_pseudo_words_of_another_adapter_are_made_again(url: str, config: ServeConfig, pipeline: Pipeline) -> None:
    root, fingerprints = Root.at(config.catalogue), Bundle.open(Path(config.bundle)).fingerprints()
    assert pipeline.catalogue is not None
    garment = pipeline.catalogue.get("red-dress")
    assert isinstance(garment.picture, StoredPicture) and garment.pseudo_words is not None
    row = GarmentRow("other-dress", "dresses", "", garment.picture.reference, garment.picture.sha256)
    vector, useless = pipeline.catalogue.vector("red-dress"), np.zeros_like(garment.pseudo_words)
    append(root, GarmentAdded(row, vector, useless, fingerprints | {INVERSION: "another adapter's"}))
    wait_for(lambda: httpx.get(f"{url}/v1/garments/other-dress").status_code == 200)
    wanted = expected(pipeline, garment_ids=["red-dress"])
    for _ in range(2):  # made, and out of the cache
        assert same(picture(edit(url, garment_ids=["other-dress"])), wanted)
    assert delete(url, "other-dress").status_code == 204


def test_attributes_narrow_a_search_and_an_edit(url: str) -> None:
    with (
        added(url, "violet-small", attributes=["size=S", "season=summer"]),
        added(url, "violet-large", image=garment_picture("purple"), attributes=["size=L", "size=XL"]),
    ):

        def search(*attributes: str) -> set[str]:
            params = {"q": "a dress", "category": "dresses", "attributes": list(attributes)}
            return set(found(httpx.get(f"{url}/v1/garments/search", params=params, timeout=PATIENCE_S)))

        assert search("size=S") == {"violet-small"}
        assert search("size=S", "size=XL") == {"violet-small", "violet-large"}
        assert search("size=L", "season=summer") == set()
        assert len(search()) == 6
        edited = edit(url, attributes=["size=XL"]).json()
        assert [garment["id"] for garment in edited["garments"]] == ["violet-large"]
        assert edit(url, attributes=["shape"]).json()["error"]["field"] == "attributes"
        older = {"q": "a dress", "category": "dresses", "attribute": "size=XL"}
        assert found(httpx.get(f"{url}/v1/garments/search", params=older, timeout=PATIENCE_S)) == ["violet-large"]
        nobody = edit(url, attributes=["size=S", "season=winter"])
        assert (nobody.status_code, nobody.json()["error"]["field"]) == (400, "attributes")
        assert "size=S, season=winter" in nobody.json()["error"]["message"]
        assert edit(url, attributes=["season=winter"], num_garments=0, steps=1).status_code == 200


@pytest.mark.parametrize("garment_id", ["similar", "image", "a..b", "-", "x."])
def test_a_garment_of_any_id_that_is_taken_can_be_read_and_deleted(url: str, garment_id: str) -> None:
    with added(url, garment_id) as body:
        assert httpx.get(f"{url}/v1/garments/{garment_id}").json() == body
        assert httpx.get(f"{url}{body['image_url']}").status_code == 200
    assert httpx.get(f"{url}/v1/garments/{garment_id}").status_code == 404


def test_versions_are_replaced_under_load_and_no_request_is_lost(
    url: str, config: ServeConfig, pipeline: Pipeline, tmp_path: Path
) -> None:
    asked: list[dict[str, Any]] = [{"seed": seed, "garment_ids": ["red-dress"]} for seed in range(3)]
    wanted = [expected(pipeline, **changes) for changes in asked]
    bundle, root = Bundle.open(Path(config.bundle)), Root.at(config.catalogue)
    enough = threading.Event()
    outcomes: list[tuple[int, httpx.Response]] = []

    def ask(number: int) -> None:
        while not enough.is_set():
            outcomes.append((number, edit(url, **asked[number])))

    def served(colour: str) -> bool:
        return httpx.get(f"{url}/v1/garments/new-dress").json().get("caption") == colour

    picture_file = tmp_path / "new.png"
    with ThreadPoolExecutor(len(asked)) as clients:
        asks = [clients.submit(ask, number) for number in range(len(asked))]
        try:
            for colour in ("pink", "cyan", "gold"):
                picture_file.write_bytes(garment_picture(colour))
                bundle.build_catalogue(
                    config.catalogue, [Garment("new-dress", "dresses", colour, picture_file)], work=tmp_path / "work"
                )
                wait_for(partial(served, colour))
            num_then = len(outcomes)
            wait_for(lambda: len(outcomes) >= num_then + len(asked))
        finally:
            enough.set()
        for each in asks:
            each.result()
    assert all(same(picture(reply), wanted[number]) for number, reply in outcomes)
    # A build without it, and with nothing else, gives back what was there.
    assert delete(url, "new-dress").status_code == 204
    assert current(root) is not None


def test_keys_change_without_a_restart(url: str, config: ServeConfig) -> None:
    assert config.catalogue_keys is not None
    keys = Path(config.catalogue_keys)

    def status(key: str) -> int:
        return httpx.delete(f"{url}/v1/garments/nobody", headers={"authorization": f"Bearer {key}"}).status_code

    assert (status(CATALOGUE_KEY), status("second-key")) == (404, 401)
    try:
        keys.write_text(f"{CATALOGUE_KEY}\nsecond-key\n")
        wait_for(lambda: status("second-key") == 404)
        assert status(CATALOGUE_KEY) == 404
        # A mistake leaves the keys as they are.
        keys.write_text("")
        time.sleep(3)
        assert (status(CATALOGUE_KEY), status("second-key")) == (404, 404)
        keys.write_text("second-key\n")
        wait_for(lambda: status(CATALOGUE_KEY) == 401)
    finally:
        keys.write_text(f"{CATALOGUE_KEY}\n")
        wait_for(lambda: status(CATALOGUE_KEY) == 404)
