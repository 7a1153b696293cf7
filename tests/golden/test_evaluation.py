"""What an evaluation asks for, against the inputs of the published evaluation (case 8)."""

from pathlib import Path

import torch

from fashion_rag.completer import Completer
from fashion_rag.data.prepare import prepare
from fashion_rag.evaluation.edits import EditFolder, EvaluationSettings
from fashion_rag.manifest import Manifest
from fashion_rag.pipeline import condition, encode_person, invert
from tests.evaluation.conftest import Painter
from tests.golden.golden import Golden, difference


def test_requests_garments_and_masks_are_the_published_ones(golden: Golden, tmp_path: Path) -> None:
    case, about = golden.tensors("case8_evaluation"), golden.case("8_evaluation")
    root = golden.dresscode
    settings = EvaluationSettings(
        str(root),
        "painter",
        num_retrieved=about["n_retrieved"],
        retrieval=str(root / "retrieval"),
        steps=about["steps"],
    )
    manifest = Manifest("golden", image_size=golden.picture_size, num_pseudo_words=golden.num_pseudo_words)
    edits, painter = EditFolder(tmp_path, settings, manifest), Painter()
    edits.make(painter, 4, lambda done, total: None)
    persons = [pair.person_id for pair in edits.data.pairs]
    for row, name in enumerate(about["samples"]):
        number = persons.index(name.removesuffix("_0.jpg"))
        ((request, _),) = Completer()(None, [painter.asked[number]], manifest.image_size)
        garments = painter.garments[number]
        assert request.prompt == about["captions"][row]
        words = invert(golden.garment_encoder, [garment.image() for garment in garments])
        (conditioning,) = condition(golden.prompt_encoder, [request], [words])
        rows = slice(row, row + 1)
        assert difference(conditioning.prompt_embeds, case["prompt_embeds"][rows]) < (
            golden.tolerance("case8_prompt_embeds")
        )
        photo = prepare(request, manifest)
        person = encode_person(golden.vae, photo.image, photo.mask, photo.pose_map, case["vae_noise"][rows])
        assert torch.equal(person.mask, case["mask_latents"][rows].float())
        assert difference(person.masked_image_latents, case["masked_image_latents"][rows]) < golden.tolerance("case4")
