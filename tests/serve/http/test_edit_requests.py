"""Tests which edits and garments are made of forms, and with which messages the others are refused, without Ray."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fashion_rag.errors import InvalidRequest
from fashion_rag.manifest import Student
from fashion_rag.request import Shortcuts, Solver, Template
from fashion_rag.sampling import Preset
from serve.config import IngressSettings
from serve.http.edit_requests import MAX_FILE_SIDES, edit_requests, garment_picture
from serve.http.forms import EditForm, GarmentForm
from tests.profiles import display_p3, one_way_rgb
from tests.serve.http.sent_forms import ARRIVED, KEYPOINTS, MANIFEST, changed, requests, saved
from tests.serve.pictures import SIZE, huge_png, mask, photo, png


def test_what_the_form_leaves_out_comes_from_the_manifest() -> None:
    (edit,) = requests()
    assert np.array_equal(edit.image, photo())
    assert np.array_equal(edit.mask != 0, mask() != 0)
    assert (edit.num_inference_steps, edit.guidance_scale, edit.num_garments) == (7, 2.5, 1)
    assert (edit.keypoints, edit.garment_ids, edit.template) == (None, (), Template.GARMENTS)
    assert (edit.num_chunks, edit.request_id) == (None, "request-7")


def test_what_the_form_says_is_what_is_asked_for() -> None:
    fields = {"num_garments": "3", "num_chunks": "2", "seed": "0", "steps": "3", "guidance_scale": "0"}
    (edit,) = requests(**fields, keypoints=json.dumps(KEYPOINTS), garment_ids="b", template="caption", model="toy")
    assert edit.keypoints is not None
    assert edit.keypoints.tolist() == KEYPOINTS
    assert (edit.num_garments, edit.num_chunks, edit.garment_ids) == (3, 2, ("b",))
    assert (edit.seed, edit.num_inference_steps, edit.guidance_scale) == (0, 3, 0.0)
    assert edit.template == Template.CAPTION


def test_several_edits_differ_in_seed_and_id_alone() -> None:
    edits = requests(n="3", seed="40")
    assert [(edit.seed, edit.request_id) for edit in edits] == [
        (40, "request-7-0"),
        (41, "request-7-1"),
        (42, "request-7-2"),
    ]
    assert all(edit.image is edits[0].image and edit.prompt == "red dress" for edit in edits)


def test_the_deadline_is_the_callers_else_the_servers() -> None:
    assert requests()[0].deadline_unix_s == 1020.0
    assert [edit.deadline_unix_s for edit in requests(deadline_s="2.5", n="2")] == [1002.5, 1002.5]
    assert requests(deadline_s="20")[0].deadline_unix_s == 1020.0


def test_without_a_seed_one_is_drawn() -> None:
    assert requests()[0].seed != requests()[0].seed
    first, second = requests(n="2")
    assert second.seed == first.seed + 1


def test_seeds_do_not_run_past_the_last() -> None:
    assert requests(seed=str(2**63 - 1))[0].seed == 2**63 - 1
    with pytest.raises(InvalidRequest, match="seed"):
        requests(seed=str(2**63 - 1), n="2")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"preset": "fast"}, (2, 2.5)),
        ({"quality": "low"}, (2, 2.5)),
        ({"quality": "low", "preset": "fast"}, (2, 2.5)),
        ({"quality": "medium"}, (7, 0.0)),
        ({"preset": "mine"}, (3, 4.0)),
        ({"preset": "mine", "steps": "9"}, (9, 4.0)),
        ({"preset": "mine", "guidance_scale": "0"}, (3, 0.0)),
        ({"quality": "auto"}, (7, 2.5)),
    ],
)
def test_steps_and_guidance_are_the_forms_else_the_presets_else_the_bundles(
    fields: dict[str, str], expected: tuple[int, float]
) -> None:
    (edit,) = requests(**fields)
    assert (edit.num_inference_steps, edit.guidance_scale) == expected


def test_shortcuts_are_the_forms_else_the_presets_else_none() -> None:
    quick = Preset(4, None, Shortcuts(Solver.UNIPC, 0.1, 0.6, 2))
    settings = IngressSettings(max_pixels=10_000, deadline_s=20.0, presets={"quick": quick})
    shortcuts = Shortcuts(Solver.UNIPC, 0.1, 0.6, 2)
    assert requests(settings)[0].shortcuts == Shortcuts()
    assert requests(settings, preset="quick")[0].shortcuts == shortcuts
    fields = {"solver": "ddim", "guidance_start": "0", "cache_interval": "1"}
    assert requests(settings, preset="quick", **fields)[0].shortcuts == Shortcuts(guidance_end=0.6)
    assert requests(settings, guidance_end="0.5")[0].shortcuts == Shortcuts(guidance_end=0.5)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("solver", "euler", "must be"),
        ("guidance_start", "-0.1", "must be greater than or equal to 0"),
        ("guidance_end", "nan", "must be a finite number"),
        ("cache_interval", "11", "must be less than or equal to 10"),
        ("preset", "slow", "needs a preset that this server has: fast, balanced, mine"),
        ("quality", "high", "needs a preset that this server has"),
        ("model", "other", "must be 'toy'"),
        ("deadline_s", "20.1", "must be at most 20.0"),
        ("category", "hats", "must be one of"),
        ("guidance_scale", "51", "must be less than or equal to 50"),
        ("keypoints", "[[1, 2]]", "with 18 points"),
        ("window", "1, 2, 40, 30", "must be JSON"),
        ("window", '{"top": 0.5, "left": 0, "height": 40, "width": 30}', "must be JSON"),
        ("window", '{"top": 0, "left": 0, "height": 40, "width": 40}', "must have the model's shape"),
        ("window", '{"top": 0, "left": 0, "height": -40, "width": -30}', "must have the model's shape"),
        ("window", '{"top": 0, "left": 0, "height": 4000000, "width": 3000000}', "sides up to 1000000"),
        ("window", '{"top": 90, "left": 0, "height": 40, "width": 30}', "photo"),
        ("keypoints", json.dumps([[1, 2]] * 17)[:-1] + ", [1, NaN]]", "finite"),
        ("image", b"hello", "whole picture"),
        ("image", huge_png(), "at most 10000 pixels"),
        ("mask", huge_png(), "at most 10000 pixels"),
        ("mask", png(mask()[:40]), "got '60x40'; must have the image's size, 60x80 "),
        ("mask", png(np.zeros(SIZE, np.uint8)), "must mark"),
    ],
)
def test_what_does_not_suit_the_server_or_the_photo_is_refused(name: str, value: str | bytes, rule: str) -> None:
    with pytest.raises(InvalidRequest, match=rule) as caught:
        requests(**{name: value})
    assert caught.value.field == name


def test_low_quality_is_the_students_where_it_is_offered() -> None:
    turbo = Preset(shortcuts=Shortcuts(student=True))
    settings = IngressSettings(max_pixels=10_000, deadline_s=20.0, presets={"fast": Preset(steps=2), "turbo": turbo})
    manifest = replace(MANIFEST, student=Student("0" * 64, num_inference_steps=3))
    for fields in ({"quality": "low"}, {"preset": "turbo"}, {"student": "true"}):
        (edit,) = edit_requests(changed(**fields), manifest, settings, "request-7", ARRIVED)
        assert (edit.num_inference_steps, edit.guidance_scale, edit.shortcuts) == (3, 1.0, turbo.shortcuts)
    (fast,) = edit_requests(changed(quality="low", preset="fast"), manifest, settings, "request-7", ARRIVED)
    assert (fast.num_inference_steps, fast.shortcuts) == (2, Shortcuts())
    with pytest.raises(InvalidRequest, match="student: got True; needs a bundle that has a student"):
        requests(student="true")
    with pytest.raises(InvalidRequest, match=r"guidance_scale: got 3\.0; must be at most 1 with the student"):
        edit_requests(changed(preset="turbo", guidance_scale="3"), manifest, settings, "request-7", ARRIVED)


def test_a_server_without_presets_says_so() -> None:
    with pytest.raises(InvalidRequest, match="quality: got 'low'; needs a preset that this server has: none"):
        requests(IngressSettings(presets={}), quality="low")


# Masks in the photo


def transparent_photo(alpha: int) -> Image.Image:
    marked = np.where(mask() > 0, alpha, 255).astype(np.uint8)
    return Image.fromarray(np.dstack([photo(), marked]))


def test_a_transparent_photo_is_its_own_mask() -> None:
    (edit,) = requests(image=saved(transparent_photo(0)), mask=None)
    assert np.array_equal(edit.mask != 0, mask() != 0)
    assert np.array_equal(edit.image[mask() == 0], photo()[mask() == 0])


def test_a_mask_comes_before_transparency() -> None:
    other = np.zeros(SIZE, np.uint8)
    other[:10] = 255
    (edit,) = requests(image=saved(transparent_photo(0)), mask=png(other))
    assert np.array_equal(edit.mask != 0, other != 0)


# All of it white, which in a mask would mean: repaint.
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_opaque_photo_without_a_mask_is_refused(mode: str) -> None:
    white = saved(Image.new(mode, (60, 80), "white"))
    with pytest.raises(InvalidRequest, match="mask: is missing; must be given, unless the photo is transparent"):
        requests(image=white, mask=None)


def test_white_strokes_on_a_transparent_canvas_are_what_is_repainted() -> None:
    strokes = np.dstack([mask()] * 4)
    (edit,) = requests(mask=png(strokes))
    assert np.array_equal(edit.mask != 0, mask() != 0)


def test_a_mask_that_may_mean_either_part_is_refused_by_name() -> None:
    strokes = np.dstack([np.zeros((*SIZE, 3), np.uint8), mask()])
    with pytest.raises(InvalidRequest, match=r"mask: got .*must be clear"):
        requests(mask=png(strokes))


# Colours


def test_the_photo_keeps_its_profile_and_its_pixels() -> None:
    edits = requests(image=saved(Image.fromarray(photo()), icc_profile=display_p3()), n="2")
    for edit in edits:
        assert edit.icc_profile == display_p3()
        assert np.array_equal(edit.image, photo())
    (smaller,) = requests(image=saved(Image.fromarray(photo()), icc_profile=display_p3()), size="30x40")
    assert smaller.icc_profile == display_p3()
    assert np.array_equal(smaller.image, requests(size="30x40")[0].image)


@pytest.mark.parametrize("profile", [None, b"damaged", one_way_rgb()])
def test_a_photo_without_a_profile_that_leads_back_comes_back_as_srgb(profile: bytes | None) -> None:
    (edit,) = requests(image=saved(Image.fromarray(photo()), icc_profile=profile))
    assert edit.icc_profile is None


def test_a_garment_picture_is_stored_as_srgb() -> None:
    picture = saved(Image.new("RGB", (20, 30), (200, 100, 50)), icc_profile=display_p3())
    _, jpeg = garment_picture(GarmentForm(image=picture, id="a", category="dresses"), 10_000)
    with Image.open(io.BytesIO(jpeg)) as stored:
        assert "icc_profile" not in stored.info
        assert np.abs(np.asarray(stored).astype(int) - (215, 93, 31)).max() <= 2


# Sizes


@pytest.mark.parametrize("size", [(8160, 6120), (8064, 6048), (8192, 6144)])
def test_by_default_the_photos_of_phones_are_taken(size: tuple[int, int]) -> None:
    edit = {"prompt": "red dress", "category": "dresses", "garment_ids": ["a"]}
    # Of one bit a pixel, as what is tested is a limit.
    image = saved(Image.new("1", size))
    half = Image.new("1", size)
    half.paste(1, (0, 0, size[0] // 2, size[1]))
    form = EditForm.model_validate({"image": image, "mask": saved(half), **edit})
    (request,) = edit_requests(form, MANIFEST, IngressSettings(), "request-7", ARRIVED)
    assert request.image.shape == (size[1], size[0], 3)


def test_photo_mask_and_keypoints_are_brought_to_the_size_asked_for() -> None:
    window = {"top": -8, "left": 10, "height": 64, "width": 48}
    (edit,) = requests(size="30x40", keypoints=json.dumps(KEYPOINTS), window=json.dumps(window))
    assert edit.window == (-4, 5, 32, 24)
    assert (edit.image.shape, edit.mask.shape) == ((40, 30, 3), (40, 30))
    assert np.array_equal(edit.mask != 0, mask()[1::2, 1::2] != 0)
    assert edit.keypoints is not None
    assert np.array_equal(edit.keypoints, np.array(KEYPOINTS) / 2)
    assert abs(edit.image.astype(float).mean() - photo().mean()) < 1


@pytest.mark.parametrize("size", ["60x80", "66x87", "75x100", "61x80", "16x21"])
def test_a_size_in_the_photos_shape_is_taken(size: str) -> None:
    (edit,) = requests(size=size)
    assert "x".join(map(str, edit.image.shape[1::-1])) == size


@pytest.mark.parametrize(
    ("size", "rule"),
    [
        ("62x80", "must have the photo's shape, 60x80, within 2%"),
        ("80x60", "must have the photo's shape"),
        ("1024x1024", "at most 10000 pixels"),
        ("90x120", "at most 10000 pixels"),
        ("15x20", "sides from 16 to 4096"),
        ("3075x4100", "sides from 16 to 4096"),
        ("99999x99999", "must be auto, or WIDTHxHEIGHT"),
        ("60", "must be auto, or WIDTHxHEIGHT"),
        ("60X80", "must be auto, or WIDTHxHEIGHT"),
        ("-60x-80", "must be auto, or WIDTHxHEIGHT"),
        ("60x80\n", "must be auto, or WIDTHxHEIGHT"),
        ("\u0666\u0660x\u0668\u0660", "must be auto, or WIDTHxHEIGHT"),
    ],
)
def test_another_size_is_refused(size: str, rule: str) -> None:
    with pytest.raises(InvalidRequest, match=rule) as caught:
        requests(size=size)
    assert caught.value.field == "size"


def test_a_mask_of_another_size_is_refused_though_both_are_resized() -> None:
    with pytest.raises(InvalidRequest, match=r"mask: .*must have the image's size"):
        requests(size="30x40", mask=png(mask()[::2, ::2]))


def test_a_picture_that_its_file_could_not_hold_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAX_FILE_SIDES, "webp", 79)
    with pytest.raises(InvalidRequest, match="output_format: got 'webp'; holds at most 79 pixels a side"):
        requests(output_format="webp")
    assert requests(output_format="webp", size="30x40")[0].image.shape == (40, 30, 3)
    assert requests(output_format="jpeg")
