"""Tests of what an edit may ask for: each rule refuses what breaks it, and names the field."""

from typing import Any

import numpy as np
import pytest

from fashion_rag.errors import InvalidRequest
from fashion_rag.request import MAX_PROMPT_CHARS, EditRequest, Shortcuts, Solver, Template, Window

IMAGE = np.zeros((32, 24, 3), np.uint8)
MASK = np.ones((32, 24), np.uint8)


def request(**changes: Any) -> EditRequest:
    asked: dict[str, Any] = {"image": IMAGE, "mask": MASK, "prompt": "a red dress", "category": "dresses"}
    return EditRequest(**(asked | changes))


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("image", {"image": IMAGE[..., 0]}),
        ("image", {"image": IMAGE.astype(np.float32)}),
        ("mask", {"mask": MASK[:16]}),
        ("mask", {"mask": np.zeros_like(MASK)}),
        ("category", {"category": "hats"}),
        ("prompt", {"prompt": "  "}),
        ("prompt", {"prompt": "x" * (MAX_PROMPT_CHARS + 1)}),
        ("keypoints", {"keypoints": np.zeros((17, 2))}),
        ("keypoints", {"keypoints": np.full((18, 2), np.nan)}),
        ("keypoints", {"keypoints": np.full((18, 2), -np.inf)}),
        ("keypoints", {"keypoints": np.full((18, 2), 1e300)}),
        ("window", {"window": Window(32, 0, 32, 24)}),
        ("window", {"window": Window(0, -24, 32, 24)}),
        ("window", {"window": Window(0, 0, 0, 24)}),
        ("window", {"window": Window(0, 0, 32.5, 24)}),  # type: ignore[arg-type]
        ("mask_type", {"mask_type": "circle"}),
        ("num_garments", {"num_garments": 4}),
        ("num_garments", {"num_garments": -1}),
        ("num_garments", {"num_garments": True}),
        ("garment_ids", {"garment_ids": ("a", "b", "c", "d")}),
        ("num_chunks", {"num_chunks": 0}),
        ("num_chunks", {"num_chunks": 1.5}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": 2**63}),
        ("seed", {"seed": 10**5000}),
        ("steps", {"num_inference_steps": 0}),
        ("steps", {"num_inference_steps": 1001}),
        ("guidance_scale", {"guidance_scale": float("nan")}),
        ("guidance_scale", {"guidance_scale": -1.0}),
        ("guidance_scale", {"guidance_scale": float("inf")}),
        ("guidance_scale", {"guidance_scale": 10**400}),
    ],
)
def test_what_breaks_a_rule_is_refused_by_name(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        request(**changes)
    assert refused.value.field == field
    assert str(refused.value).startswith(f"{field}: got ")


def test_the_edges_are_allowed() -> None:
    request(seed=0, num_inference_steps=1, guidance_scale=0.0, num_garments=0)
    request(window=Window(-500, 23, 501, 900))
    request(seed=2**63 - 1, num_inference_steps=1000, guidance_scale=50.0, num_garments=3)


def test_the_search_text_is_the_prompts_first_chunks() -> None:
    prompt = "black top ,long sleeves,, round neck"
    assert request(prompt=prompt).search_text == prompt
    assert request(prompt=prompt, num_chunks=2).search_text == "black top, long sleeves"
    assert request(prompt=prompt, num_chunks=9).search_text == "black top, long sleeves, round neck"


def test_every_request_has_an_id_of_its_own() -> None:
    assert request().request_id != request().request_id


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(InvalidRequest, match=r"\.\.\."):
        request(category="x" * 1000)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("solver", {"solver": "euler"}),
        ("guidance_start", {"guidance_start": -0.1}),
        ("guidance_start", {"guidance_start": float("nan")}),
        ("guidance_end", {"guidance_end": 1.1}),
        ("guidance_end", {"guidance_start": 0.5, "guidance_end": 0.4}),
        ("cache_interval", {"cache_interval": 0}),
        ("cache_interval", {"cache_interval": 2.0}),
    ],
)
def test_shortcuts_that_break_a_rule_are_refused_by_name(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Shortcuts(**changes)
    assert refused.value.field == field


def test_a_digest_tells_all_that_makes_another_picture_and_nothing_else() -> None:
    plain = request(request_id="a", deadline_unix_s=1.0)
    assert request(request_id="b", deadline_unix_s=2.0).digest() == plain.digest()
    assert request(image=IMAGE.copy(order="F")).digest() == plain.digest()
    spot = IMAGE.copy()
    spot[3, 4, 1] = 1
    half = MASK.copy()
    half[:16] = 0
    changed = [
        request(image=spot),
        request(image=IMAGE.reshape(24, 32, 3), mask=MASK.reshape(24, 32)),
        request(mask=half),
        request(prompt="a red  dress"),
        request(category="upper_body"),
        request(keypoints=np.zeros((18, 2))),
        request(num_garments=2),
        request(garment_ids=("a",)),
        request(attributes={"colour": ("red",)}),
        request(num_chunks=1),
        request(template=Template.CAPTION),
        request(seed=1),
        request(num_inference_steps=20),
        request(guidance_scale=3.0),
        request(shortcuts=Shortcuts(Solver.UNIPC)),
        request(shortcuts=Shortcuts(cache_interval=2)),
        request(guidance_scale=1.0, shortcuts=Shortcuts(student=True)),
        request(icc_profile=b"one"),
        request(icc_profile=b"other"),
    ]
    assert len({edit.digest() for edit in [plain, *changed]}) == 1 + len(changed)
