"""The bundle that ships: whole, small enough, and a plain garment's colour arrives in the picture."""

from fashion_rag.bundle import Bundle
from fashion_rag.config import DEMO_BUNDLE
from fashion_rag.demo.draw import pattern_maps
from fashion_rag.demo.evaluate import make_cases, paint
from fashion_rag.demo.measure import main_colour
from fashion_rag.demo.world import Garment, dressed
from fashion_rag.pipeline import Pipeline

MAX_BYTES = 16e6


def test_every_part_loads() -> None:
    bundle = Bundle.open(DEMO_BUNDLE)
    bundle.load_unet()
    bundle.load_vae()
    bundle.load_prompt_encoder()
    bundle.load_garment_encoder()
    bundle.load_retrieval_encoder()


def test_it_is_small_enough_to_ship() -> None:
    assert 0 < sum(path.stat().st_size for path in DEMO_BUNDLE.rglob("*.safetensors")) <= MAX_BYTES


def test_a_plain_garment_brings_its_colour_and_words_of_the_kind_do_not() -> None:
    pipeline = Pipeline.load(DEMO_BUNDLE)
    manifest = pipeline.manifest
    drawn = make_cases(60, manifest.image_size, 21, manifest.num_inference_steps, manifest.guidance_scale)
    cases = [case for case in drawn if case.target.pattern == "plain"][:8]

    def num_right(garments: list[list[Garment]]) -> int:
        painted = paint(pipeline, cases, garments, lambda: None)
        right = 0
        for case, picture in zip(cases, painted, strict=True):
            coverage, _ = pattern_maps(dressed(case.person, case.target), case.target.category, manifest.image_size)
            right += main_colour(picture, coverage * case.request.mask) == case.target.colour
        return right

    assert num_right([[case.target] for case in cases]) >= 7
    assert num_right([[] for _ in cases]) <= 4
