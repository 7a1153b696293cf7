"""Tests the official Python client of OpenAI, unmodified, against the running graph."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from openai.types import ImageEditCompletedEvent, ImageEditPartialImageEvent

from fashion_rag.pipeline import Pipeline
from serve.config import ServeConfig
from tests.serve.client import PATIENCE_S, decoded, expected, same
from tests.serve.pictures import SIZE, mask, photo, png

OURS = {"category": "dresses", "seed": 5}
NUM_STEPS = 8


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=PATIENCE_S, max_retries=0) as client:
        yield client


def upload(pixels: Any, name: str = "photo.png") -> io.BytesIO:
    file = io.BytesIO(png(pixels))
    file.name = name
    return file


def test_an_edit(client: openai.OpenAI, pipeline: Pipeline) -> None:
    reply = client.images.edit(image=upload(photo()), mask=upload(mask()), prompt="red dress", extra_body=OURS)
    assert reply.data is not None
    (data,) = reply.data
    assert data.b64_json is not None
    assert same(decoded(data.b64_json), expected(pipeline))
    assert reply.created > 0
    # What is not OpenAI's comes along.
    assert reply.model_extra is not None
    assert reply.model_extra["seed"] == 5
    assert reply.model_extra["garments"][0]["score"] is not None


def test_a_mask_in_their_way_of_saying_it(client: openai.OpenAI, pipeline: Pipeline) -> None:
    """The mask is the transparent part of the photo, which is sent as a list, with all parameters of OpenAI's API."""
    see_through = np.dstack([photo(), 255 - mask()])
    reply = client.images.edit(
        image=[upload(see_through)],
        mask=upload(see_through),
        prompt="red dress",
        model=pipeline.manifest.name,
        n=1,
        size="auto",
        quality="auto",
        background="auto",
        response_format="b64_json",
        output_format="webp",
        output_compression=90,
        user="shopper",
        extra_body=OURS | {"garment_ids": ["red-dress", "blue-dress"], "steps": 2},
    )
    assert reply.data is not None
    assert reply.data[0].b64_json is not None
    assert decoded(reply.data[0].b64_json).shape == (*SIZE, 3)
    assert reply.output_format == "webp"


def test_a_stream(client: openai.OpenAI, pipeline: Pipeline) -> None:
    stream = client.images.edit(
        image=upload(photo()),
        mask=upload(mask()),
        prompt="red dress",
        stream=True,
        partial_images=3,
        extra_body=OURS | {"steps": NUM_STEPS},
    )
    *partials, completed = list(stream)
    assert [partial.partial_image_index for partial in partials] == [0, 1, 2]
    outside = mask() == 0
    for partial in partials:
        assert isinstance(partial, ImageEditPartialImageEvent)
        shown = decoded(partial.b64_json)
        assert np.array_equal(shown[outside], photo()[outside])
        assert not np.array_equal(shown, photo())
    steps = [(partial.model_extra or {})["step"] for partial in partials]
    assert steps == [2, 4, 6]
    assert isinstance(completed, ImageEditCompletedEvent)
    assert same(decoded(completed.b64_json), expected(pipeline, steps=NUM_STEPS))


def test_errors_are_its_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="category") as refused:
        client.images.edit(
            image=upload(photo()), mask=upload(mask()), prompt="red dress", extra_body={"category": "hats"}
        )
    assert isinstance(refused.value.body, dict)
    assert (refused.value.body["type"], refused.value.body["field"]) == ("InvalidRequest", "category")
    assert (refused.value.param, refused.value.code) == ("category", "invalid_value")
    with pytest.raises(openai.BadRequestError, match="steps"):
        client.images.edit(
            image=upload(photo()), mask=upload(mask()), prompt="red dress", stream=True, extra_body=OURS | {"steps": 0}
        )


def test_models(client: openai.OpenAI, config: ServeConfig, pipeline: Pipeline) -> None:
    (model,) = client.models.list()
    assert model.id == pipeline.manifest.name
    assert client.models.retrieve(model.id) == model
    with pytest.raises(openai.NotFoundError) as unknown:
        client.models.retrieve("gpt-image-2")
    assert (unknown.value.param, unknown.value.code) == ("model", "model_not_found")
