import dataclasses
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fashion_rag import completer
from fashion_rag.catalogue.catalogue import Catalogue
from fashion_rag.catalogue.changes import GarmentAdded, GarmentDeleted
from fashion_rag.catalogue.garments import StoredPicture
from fashion_rag.catalogue.retrieve import retrieve, retrieve_many
from fashion_rag.catalogue.table import GarmentRow
from fashion_rag.completer import Completer
from fashion_rag.data.colour import from_srgb, to_srgb
from fashion_rag.data.finish import finish
from fashion_rag.data.prepare import prepare
from fashion_rag.data.window import Box, box_of, box_round, whole
from fashion_rag.denoising.noise_schedule import NoiseSchedule
from fashion_rag.errors import InvalidRequest
from fashion_rag.manifest import Manifest
from fashion_rag.person.reading import PhotoReading
from fashion_rag.pipeline import (
    Conditioning,
    Person,
    Pipeline,
    condition,
    denoise,
    draw_noise,
    encode,
    invert,
)
from fashion_rag.request import CompleteRequest, EditRequest, Shortcuts, Template, Window
from tests.profiles import display_p3

SAMPLER = NoiseSchedule(beta_schedule="scaled_linear")
# How much a request in a batch may differ from the request alone: the rounding of float32, on values of about one.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path, tiny_catalogue: Path) -> Pipeline:
    return Pipeline.load(tiny_bundle, tiny_catalogue)


def edit_request(size: tuple[int, int] = (64, 48), **changes: Any) -> EditRequest:
    height, width = size
    rng = np.random.default_rng(0)
    mask = np.zeros(size, dtype=np.uint8)
    mask[height // 4 : height // 2, width // 4 : width // 2] = 255
    keypoints = np.zeros((18, 2))
    keypoints[2] = (width * 0.25, height * 0.5)
    options: dict[str, Any] = {
        "image": rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        "mask": mask,
        "prompt": "a red top",
        "category": "upper_body",
        "keypoints": keypoints,
        "num_inference_steps": 2,
    }
    return EditRequest(**options | changes)


def complete_request(size: tuple[int, int] = (64, 48), **changes: Any) -> CompleteRequest:
    """Return `edit_request` with its window for pictures of 64x48."""
    ((request, _),) = Completer()(None, [edit_request(size, **changes)], (64, 48))
    return request


@pytest.mark.parametrize("num_garments", [0, 1, 2, 3])
def test_edit_with_garments_from_none_to_three(pipeline: Pipeline, num_garments: int) -> None:
    request = edit_request(num_garments=num_garments)
    result = pipeline(request)
    repainted = request.mask != 0
    assert result.image.shape == request.image.shape
    assert result.image.dtype == np.uint8
    assert np.array_equal(result.image[~repainted], request.image[~repainted])
    assert (result.image[repainted] != request.image[repainted]).mean() > 0.5
    assert len(set(result.garment_ids)) == num_garments
    assert result.seed == request.seed
    assert list(result.timings_s) == ["find", "retrieve", "condition", "encode", "denoise", "decode"]


def test_a_picture_depends_on_its_request_alone(pipeline: Pipeline) -> None:
    first = pipeline(edit_request()).image
    torch.manual_seed(1234)
    torch.rand(7)
    state = torch.get_rng_state()
    assert np.array_equal(pipeline(edit_request()).image, first)
    assert torch.equal(torch.get_rng_state(), state)


def test_edits_side_by_side_do_not_touch_each_other(pipeline: Pipeline) -> None:
    seeds = [3, 4, 5]
    alone = [pipeline(edit_request(seed=seed)).image for seed in seeds]
    together: dict[int, Any] = {}

    def run(seed: int) -> None:
        together[seed] = pipeline(edit_request(seed=seed)).image

    threads = [threading.Thread(target=run, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(together[seed], image) for seed, image in zip(seeds, alone, strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"num_garments": 2},
        {"num_inference_steps": 3},
        {"guidance_scale": 2.0},
        {"guidance_scale": 1.0},
        {"template": Template.CAPTION_AND_GARMENTS},
        {"keypoints": None},
    ],
)
def test_what_a_request_asks_for_shows_in_the_picture(pipeline: Pipeline, changes: dict[str, Any]) -> None:
    assert not np.array_equal(pipeline(edit_request(**changes)).image, pipeline(edit_request()).image)


def test_a_photo_and_a_sentence_are_enough(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    label_map = np.zeros((512, 384), np.uint8)
    label_map[50:110, 160:220], label_map[120:300, 120:260] = 11, 4
    reading = PhotoReading(Window(16, 40, 96, 72), label_map, np.zeros((18, 2)), num_persons=2)
    monkeypatch.setattr(completer, "read_photos", lambda *arguments: [reading])
    parts: Any = "parser", None, pipeline.completer.load_chooser
    reads = replace(pipeline, completer=Completer(*parts))
    # The garment decides on the category, because the words of tiny weights mean nothing.
    options: dict[str, Any] = {"garment_ids": ("red-shirt",), "mask": None, "category": None, "keypoints": None}
    request = edit_request((128, 200), **options)
    result = reads(request)
    assert (result.category, result.category_confidence, result.window) == ("upper_body", None, reading.window)
    assert [warning.partition(" in ")[0] for warning in result.warnings] == ["There are 2 persons"]
    box = box_of(result.mask != 0)
    # The garment is in the rows 38 to 72 and the columns 62 to 89.
    assert box is not None and box_round(box, Box(40, 64, 70, 87)) == box
    assert np.array_equal(result.image[result.mask == 0], request.image[result.mask == 0])
    assert (result.image[result.mask != 0] != request.image[result.mask != 0]).mean() > 0.5
    with pytest.raises(InvalidRequest, match="mask: is missing"):
        pipeline(request)


def test_a_window_is_edited_like_a_photo_of_its_own(pipeline: Pipeline) -> None:
    photo = edit_request((128, 96))
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (170, 300, 3), dtype=np.uint8)
    mask = np.zeros((170, 300), np.uint8)
    image[30:158, 150:246], mask[30:158, 150:246] = photo.image, photo.mask
    assert photo.keypoints is not None and photo.mask is not None
    keypoints = np.where(photo.keypoints > 0, photo.keypoints + np.array([150, 30]), 0)
    wide = edit_request((170, 300), image=image, mask=mask, keypoints=keypoints, window=Window(30, 150, 128, 96))
    edited, alone = pipeline(wide).image, pipeline(photo).image
    assert np.array_equal(edited[30:158, 150:246], alone)
    assert np.array_equal(edited[mask == 0], image[mask == 0])


def test_the_student_paints_where_it_is_asked_for(
    tiny_bundle: Path, tiny_student_bundle: Path, tiny_catalogue: Path
) -> None:
    student = Pipeline.load(tiny_student_bundle, tiny_catalogue)
    few = edit_request(num_inference_steps=4, guidance_scale=1.0, shortcuts=Shortcuts(student=True))
    # A pipeline whose only UNet is the student, with the schedule of students, does the same.
    alone = replace(student, unet=student.student, sampler=student.sampler.for_student())
    plain = replace(few, shortcuts=Shortcuts())
    np.testing.assert_array_equal(student(few).image, alone(plain).image)
    teacher = Pipeline.load(tiny_bundle, tiny_catalogue)
    assert not np.array_equal(student(few).image, student(plain).image)
    np.testing.assert_array_equal(student(plain).image, teacher(plain).image)
    with pytest.raises(InvalidRequest, match="student: got True; needs a bundle that has a student"):
        teacher(few)


@pytest.mark.parametrize("size", [(64, 48), (100, 100), (37, 211)])
def test_pictures_of_any_size(pipeline: Pipeline, size: tuple[int, int]) -> None:
    request = edit_request(size)
    image = pipeline(request).image
    assert image.shape == (*size, 3)
    assert np.array_equal(image[request.mask == 0], request.image[request.mask == 0])


def test_named_garments_are_used_in_the_order_given(pipeline: Pipeline) -> None:
    ids = pipeline(edit_request(num_garments=2)).garment_ids
    named = edit_request(garment_ids=ids[::-1])
    assert pipeline(named).garment_ids == ids[::-1]
    assert not np.array_equal(pipeline(named).image, pipeline(edit_request(num_garments=2)).image)
    again = edit_request(garment_ids=ids)
    assert np.array_equal(pipeline(again).image, pipeline(edit_request(num_garments=2)).image)


def test_garments_may_be_brought_along(pipeline: Pipeline) -> None:
    request = edit_request(num_garments=2)
    garments = [match.garment for match in retrieve(pipeline.catalogue, request)]
    without_catalogue = dataclasses.replace(pipeline, catalogue=None)
    result = without_catalogue(request, garments)
    assert result.garment_ids == tuple(garment.id for garment in garments)
    assert np.array_equal(result.image, pipeline(request).image)


def test_the_caption_template_asks_for_no_garments(pipeline: Pipeline) -> None:
    result = pipeline(edit_request(template=Template.CAPTION, num_garments=3))
    assert result.garment_ids == ()
    assert np.array_equal(result.image, pipeline(edit_request(num_garments=0)).image)


def test_retrieval_without_a_catalogue_is_refused(pipeline: Pipeline) -> None:
    without_catalogue = dataclasses.replace(pipeline, catalogue=None)
    assert without_catalogue(edit_request(num_garments=0)).garment_ids == ()
    for request in (edit_request(num_garments=1), edit_request(garment_ids=("x",))):
        with pytest.raises(InvalidRequest, match="no catalogue"):
            without_catalogue(request)


def test_an_unknown_garment_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(InvalidRequest, match="garment_ids: got 'nowhere'"):
        pipeline(edit_request(garment_ids=("nowhere",)))


def mixed_requests() -> list[CompleteRequest]:
    """Return requests that differ in everything that a batch might mix up."""
    return [
        complete_request(num_garments=2, seed=3),
        complete_request((100, 90), num_garments=0, category="dresses", keypoints=None, seed=4),
        complete_request((37, 211), garment_ids=("red-dress", "black-top", "blue-jeans"), seed=5),
        complete_request(template=Template.CAPTION_AND_GARMENTS, prompt="a blue skirt", category="lower_body"),
        complete_request(template=Template.CAPTION, num_garments=3, seed=3),
    ]


def test_garments_of_many_requests_are_those_of_each(pipeline: Pipeline) -> None:
    requests = mixed_requests()
    together = retrieve_many(pipeline.catalogue, requests)
    assert [len(matches) for matches in together] == [2, 0, 3, 1, 0]
    for request, matches in zip(requests, together, strict=True):
        alone = retrieve(pipeline.catalogue, request)
        assert [match.garment for match in matches] == [match.garment for match in alone]
        scores = [match.score for match in alone]
        assert [match.score for match in matches] == pytest.approx(scores, abs=TOLERANCE)
    without_garments = [requests[1], requests[4]]
    assert retrieve_many(None, without_garments) == [[], []]


def test_garments_are_searched_with_the_chunks_asked_for(pipeline: Pipeline) -> None:
    prompt = "blue, red top, green jumper"
    first, chunks = retrieve_many(
        pipeline.catalogue,
        [edit_request(prompt="blue, red top"), edit_request(prompt=prompt, num_chunks=2)],
    )
    (whole,) = retrieve(pipeline.catalogue, edit_request(prompt=prompt))
    assert chunks[0].score == pytest.approx(first[0].score, abs=TOLERANCE)
    assert chunks[0].score != pytest.approx(whole.score, abs=TOLERANCE)


def added_to(catalogue: Catalogue, **attributes: str) -> Catalogue:
    """Return the catalogue with a red top added, which is the only garment with attributes."""
    garment = catalogue.get("black-top")
    assert isinstance(garment.picture, StoredPicture) and garment.pseudo_words is not None
    values = {name: (value,) for name, value in attributes.items()}
    row = GarmentRow("red-top", "upper_body", "", garment.picture.reference, garment.picture.sha256, attributes=values)
    base = catalogue._base
    change = GarmentAdded(row, catalogue.vector("black-top"), garment.pseudo_words, base.version.encoders)
    return Catalogue(base, {"9" * 20 + "-a": change}, ())


@pytest.mark.parametrize("num_garments", [1, 3])
def test_a_filter_that_no_garment_passes_is_refused_by_name(pipeline: Pipeline, num_garments: int) -> None:
    assert pipeline.catalogue is not None
    catalogue = added_to(pipeline.catalogue, size="M", colour="red")
    narrowed = replace(pipeline, catalogue=catalogue)
    (match,) = retrieve(catalogue, edit_request(attributes={"size": ["M"]}, num_garments=num_garments))
    assert match.garment.id == "red-top"
    nobody = edit_request(attributes={"size": ["S", "L"], "colour": "red"}, num_garments=num_garments)
    with pytest.raises(InvalidRequest, match=r"got 'size=S, size=L, colour=red'; .*category upper_body") as refused:
        narrowed(nobody)
    assert refused.value.field == "attributes"
    with pytest.raises(InvalidRequest, match=r"attributes: got 'size=M'; .*category dresses"):
        retrieve(catalogue, edit_request(attributes={"size": "M"}, category="dresses"))
    assert retrieve(catalogue, replace(nobody, num_garments=0)) == []


@pytest.mark.parametrize("attributes", [{}, {"size": ["M"]}])
def test_an_empty_category_is_refused_by_name(pipeline: Pipeline, attributes: dict[str, list[str]]) -> None:
    assert pipeline.catalogue is not None
    catalogue = added_to(pipeline.catalogue, size="M")
    dresses = [garment.id for garment in catalogue if garment.category == "dresses"]
    gone = {f"{'9' * 20}{row}": GarmentDeleted(garment_id) for row, garment_id in enumerate(dresses)}
    log = {**catalogue._log, **gone}
    emptied = Catalogue(catalogue._base, log, ())
    with pytest.raises(InvalidRequest, match=r"category: got 'dresses'; must have garments .*num_garments=0"):
        retrieve(emptied, edit_request(category="dresses", attributes=attributes))
    assert retrieve(emptied, edit_request(category="dresses", num_garments=0)) == []


@torch.inference_mode()
def test_conditionings_of_many_requests_are_those_of_each(pipeline: Pipeline) -> None:
    requests = mixed_requests()
    words = []
    for matches in retrieve_many(pipeline.catalogue, requests):
        pictures = [match.garment.image() for match in matches]
        words.append(invert(pipeline.garment_encoder, pictures) if pictures else None)
    assert [None if tensor is None else tuple(tensor.shape) for tensor in words] == [
        (2, 4, 16),
        None,
        (3, 4, 16),
        (1, 4, 16),
        None,
    ]
    words[4] = torch.empty(0, 4, 16)  # no garment, as an empty tensor
    together = condition(pipeline.prompt_encoder, requests, words)
    assert len(together) == len(requests)
    for request, own, conditioning in zip(requests, words, together, strict=True):
        (alone,) = condition(pipeline.prompt_encoder, [request], [own])
        check_close(conditioning.prompt_embeds, alone.prompt_embeds)
        check_close(conditioning.negative_prompt_embeds, pipeline.prompt_encoder([""]))
    assert not torch.equal(together[1].prompt_embeds, together[4].prompt_embeds)


@torch.inference_mode()
def test_pseudo_words_of_many_pictures_are_those_of_each(pipeline: Pipeline) -> None:
    assert pipeline.catalogue is not None
    pictures = [garment.image() for garment in pipeline.catalogue]
    words = invert(pipeline.garment_encoder, pictures)
    for picture, together in zip(pictures, words, strict=True):
        torch.testing.assert_close(together, invert(pipeline.garment_encoder, [picture])[0], rtol=0, atol=TOLERANCE)


@torch.inference_mode()
def test_people_of_many_requests_are_those_of_each(pipeline: Pipeline) -> None:
    requests = mixed_requests()
    together = encode(pipeline.vae, requests, pipeline.manifest)
    assert len(together) == len(requests)
    for request, (latents, person) in zip(requests, together, strict=True):
        ((latents_alone, person_alone),) = encode(pipeline.vae, [request], pipeline.manifest)
        check_close(latents, latents_alone)
        for name in ("mask", "masked_image_latents", "pose_map"):
            check_close(getattr(person, name), getattr(person_alone, name))


def check_close(row: Tensor, alone: Tensor) -> None:
    """Assert that a row of a batch is close to the row alone, and does not keep the batch in memory."""
    torch.testing.assert_close(row, alone, rtol=0, atol=TOLERANCE)
    assert row.untyped_storage().nbytes() == row.nbytes


@torch.inference_mode()
def test_a_batch_is_one_call_of_each_model(tiny_bundle: Path) -> None:
    pipeline, requests = Pipeline.load(tiny_bundle), mixed_requests()
    rows: list[int] = []
    for model in (pipeline.vae.encoder, pipeline.prompt_encoder.text_encoder):
        model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    encode(pipeline.vae, requests, pipeline.manifest)
    condition(pipeline.prompt_encoder, requests, [None] * len(requests))
    assert rows == [5, 6]  # the sixth is the empty prompt


def test_prepare_brings_everything_to_the_bundle_s_size() -> None:
    manifest = Manifest("toy", image_size=(64, 48), pose_sigma=3.0)
    inputs = prepare(replace(complete_request((128, 192)), window=whole((128, 192))), manifest)
    assert inputs.image.shape == (1, 3, 64, 48)
    assert inputs.image.is_contiguous()
    assert inputs.mask.shape == (1, 1, 64, 48)
    assert inputs.mask.nonzero()[:, 2:].amin(0).tolist() == [16, 12]
    assert inputs.mask.nonzero()[:, 2:].amax(0).tolist() == [31, 23]
    assert inputs.mask.unique().tolist() == [0.0, 1.0]
    # The point is at a quarter of the width and half the height.
    peak = inputs.pose_map[0, 2].flatten().argmax()
    assert (int(peak) // 48, int(peak) % 48) == (32, 12)
    assert float(inputs.pose_map[0, 2, 32, 15]) == pytest.approx(np.exp(-1), abs=1e-5)
    assert float(inputs.pose_map.sum()) == pytest.approx(float(inputs.pose_map[0, 2].sum()))


def test_noise_is_the_latents_first_then_the_posterior_s() -> None:
    generator = torch.Generator().manual_seed(5)
    first, second = torch.randn(1, 4, 8, 6, generator=generator), torch.randn(1, 4, 8, 6, generator=generator)
    latents, vae_noise = draw_noise(5, (1, 4, 8, 6))
    assert torch.equal(latents, first)
    assert torch.equal(vae_noise, second)


class FakeUNet:
    """A UNet that predicts zeros, and remembers what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
        self.calls.append((sample, t, prompt_embeds))
        return torch.zeros_like(sample[:, :4])


def ones_person() -> Person:
    return Person(torch.ones(1, 1, 2, 2), torch.full((1, 4, 2, 2), 2.0), torch.full((1, 18, 2, 2), 3.0))


def run(unet: FakeUNet, guidance_scale: float) -> list[Tensor]:
    conditioning = Conditioning(torch.ones(1, 77, 8), torch.zeros(1, 77, 8))
    return list(denoise(unet, SAMPLER, torch.zeros(1, 4, 2, 2), ones_person(), conditioning, 3, guidance_scale))


def test_guided_steps_run_the_unconditional_half_first_and_without_pose() -> None:
    unet = FakeUNet()
    assert len(run(unet, guidance_scale=7.5)) == 3
    assert [t.tolist() for _, t, _ in unet.calls] == [[666, 666], [333, 333], [0, 0]]
    for sample, _, prompt_embeds in unet.calls:
        assert sample[:, 4:, 0, 0].tolist() == [[1.0] + [2.0] * 4 + [pose] * 18 for pose in (0.0, 3.0)]
        assert prompt_embeds[:, 0, 0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0])
def test_steps_without_guidance_run_the_conditional_half_alone(guidance_scale: float) -> None:
    unet = FakeUNet()
    assert len(run(unet, guidance_scale)) == 3
    for sample, t, prompt_embeds in unet.calls:
        assert sample[:, 4:, 0, 0].tolist() == [[1.0] + [2.0] * 4 + [3.0] * 18]
        assert (len(t), prompt_embeds[:, 0, 0].tolist()) == (1, [1.0])


def test_the_caller_may_stop_after_any_step() -> None:
    unet = FakeUNet()
    conditioning = Conditioning(torch.ones(1, 77, 8), torch.zeros(1, 77, 8))
    next(denoise(unet, SAMPLER, torch.zeros(1, 4, 2, 2), ones_person(), conditioning, 50, 7.5))
    assert len(unet.calls) == 1


def test_finish_keeps_the_photo_outside_the_mask() -> None:
    request = complete_request((100, 90))
    image = finish(request, np.full((64, 48, 3), 255, dtype=np.uint8))
    assert np.array_equal(image[request.mask == 0], request.image[request.mask == 0])
    assert (image[request.mask != 0] == 255).all()


def test_the_model_sees_srgb_whatever_the_photos_profile(pipeline: Pipeline) -> None:
    size = pipeline.manifest.image_size
    request = complete_request(size)
    tagged = dataclasses.replace(request, icc_profile=display_p3())
    srgb = np.asarray(to_srgb(Image.fromarray(request.image), display_p3()))
    untagged = dataclasses.replace(request, image=srgb)
    assert torch.equal(prepare(tagged, pipeline.manifest).image, prepare(untagged, pipeline.manifest).image)
    assert not torch.equal(prepare(tagged, pipeline.manifest).image, prepare(request, pipeline.manifest).image)


def test_an_edited_photo_is_in_its_own_colours(pipeline: Pipeline) -> None:
    request = edit_request(num_garments=0, icc_profile=display_p3())
    result = pipeline(request)
    assert result.icc_profile == display_p3()
    assert np.array_equal(result.image[request.mask == 0], request.image[request.mask == 0])
    assert pipeline(edit_request(num_garments=0)).icc_profile is None


def test_what_is_pasted_has_the_colours_of_the_photos_profile() -> None:
    request = complete_request((100, 90), icc_profile=display_p3())
    picture = np.full((64, 48, 3), (215, 93, 31), np.uint8)
    image = finish(request, picture)
    # The same colour in Display P3.
    assert np.abs(image[request.mask != 0].astype(int) - (200, 100, 50)).max() <= 1
    assert np.array_equal(image[request.mask != 0][0], from_srgb(picture, display_p3())[0, 0])
    assert np.array_equal(image[request.mask == 0], request.image[request.mask == 0])


def test_half_precision_stays_near_full(tiny_bundle: Path, pipeline: Pipeline) -> None:
    request = edit_request(num_garments=0)
    half = Pipeline.load(tiny_bundle, dtype=torch.bfloat16)(request).image
    assert np.abs(half.astype(int) - pipeline(request).image).mean() < 3
