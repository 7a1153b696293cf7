"""The evaluation of a demo bundle: do colour and pattern of the retrieved garment arrive in the picture?

`fashion-rag demo evaluate` calls it. The cases are unpaired: a person wears something else, and the target garment has
a combination of kind, colours and pattern that training never saw. The attributes of the edited pictures are read from
their pixels (see `measure`). Rows for the true pictures show the best result that can be reached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fashion_rag.catalogue.retrieval_encoder import RetrievalEncoder
from fashion_rag.data.image import paste_outside
from fashion_rag.data.masks import repaint_mask_for
from fashion_rag.data.pose import KEYPOINT_FRAME, scale_keypoints
from fashion_rag.data.window import whole
from fashion_rag.demo.model.cases import sample_split
from fashion_rag.demo.world.agreement import read_edit
from fashion_rag.demo.world.attributes import DollGarment, DollPerson, chunks, dressed, kind_caption, sample_person
from fashion_rag.demo.world.draw import render, render_garment
from fashion_rag.evaluation.editors import edit_together
from fashion_rag.models.unet import LATENT_CHANNELS
from fashion_rag.pipeline import Pipeline, decode, invert
from fashion_rag.request import CATEGORIES, CompleteRequest

BATCH = 25
# Each case is painted with no garment, with its target, with the target of another case, and with three garments.
NUM_PAINTED = 4
CATALOGUE_PER_CATEGORY = 200
Progress = Callable[[], None]


@dataclass(frozen=True, eq=False)
class HeldOutCase:
    """A held-out edit: a person, the garment that they are to wear, and the request with their photo and mask."""

    person: DollPerson
    target: DollGarment
    request: CompleteRequest

    @property
    def truth(self) -> NDArray[np.uint8]:
        """Return the picture, uint8 [H, W, 3], that the paper-doll world draws of the person in the target."""
        return render(dressed(self.person, self.target), self.request.mask.shape).image


@dataclass(frozen=True)
class AgreementRow:
    """The agreement of a set of pictures with their target garments.

    All figures but clip_i are shares of the cases.
    colour: the main colour of the picture is one of the target's (see `measure.main_colours`).
    colour_of_plain: the same among plain targets.
    exact_colours: the first and second colour that were read with the pattern are the target's.
    pattern: the pattern that was read is the target's. pattern_of_patterned: the same among targets that are not plain.
    both: both colour and pattern agree.
    clip_i: the mean cosine between the painted garment and the picture of the target. The vectors are of the bundle's
    own retrieval encoder, so this is no independent judge.
    """

    name: str
    colour: float
    colour_of_plain: float
    exact_colours: float
    pattern: float
    pattern_of_patterned: float
    both: float
    clip_i: float


@dataclass(frozen=True)
class DemoReport:
    """The figures of a demo bundle and the settings that they were measured with.

    retrieval_at_1, retrieval_at_3: how often a garment of the same kind, colour and pattern is among the first 1 and 3.
    vae_psnr_db: how well the VAE restores the true pictures. third_garment_change: how much a second and third garment
    change the repainted part, in levels of 255.
    """

    rows: list[AgreementRow]
    retrieval_at_1: float
    retrieval_at_3: float
    vae_psnr_db: float
    third_garment_change: float
    num_cases: int
    num_inference_steps: int
    guidance_scale: float

    def as_dict(self) -> dict[str, object]:
        """Return the report as plain values, for JSON."""
        return asdict(self)


def make_cases(
    num_cases: int, size: tuple[int, int], seed: int, steps: int, guidance_scale: float
) -> list[HeldOutCase]:
    """Return held-out cases with distinct targets; the categories take turns."""
    rng = np.random.default_rng(seed)
    cases: list[HeldOutCase] = []
    targets: set[DollGarment] = set()
    while len(cases) < num_cases:
        category = CATEGORIES[len(cases) % len(CATEGORIES)]
        target = sample_split(rng, category, test=True)
        person = sample_person(rng, category)
        if target in targets or person.worn(category) == target:
            continue
        targets.add(target)
        drawn = render(person, size)
        frame = scale_keypoints(drawn.keypoints, size, KEYPOINT_FRAME)
        mask = repaint_mask_for(
            drawn.label_map,
            frame,
            category,
            mask_type="bounding_box",
            size=size,
            rule_size=KEYPOINT_FRAME,
        )
        request = CompleteRequest(
            image=drawn.image,
            mask=mask,
            window=whole(size),
            prompt=kind_caption(target),
            category=category,
            keypoints=drawn.keypoints,
            seed=int(rng.integers(2**31)),
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
        )
        cases.append(HeldOutCase(person, target, request))
    return cases


def evaluate(
    bundle_path: Path,
    num_cases: int = 200,
    seed: int = 7,
    steps: int | None = None,
    guidance_scale: float | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress = lambda: None,
) -> DemoReport:
    """Return the report of a bundle on `num_cases` held-out cases.

    steps, guidance_scale: those of the manifest by default. dtype: type of the networks' weights.
    progress: called once for each painted picture. Raises ArtifactError for a bundle that does not load.
    """
    pipeline = Pipeline.load(bundle_path, device=device, dtype=dtype)
    encoder = RetrievalEncoder.load(bundle_path / "retrieval", device)
    manifest = pipeline.manifest
    steps = steps or manifest.num_inference_steps
    guidance_scale = manifest.guidance_scale if guidance_scale is None else guidance_scale
    cases = make_cases(num_cases, manifest.image_size, seed, steps, guidance_scale)
    targets = [case.target for case in cases]
    neighbours = _neighbours(encoder, targets, manifest.image_size)
    trios = [[target, *nearest] for target, nearest in zip(targets, neighbours, strict=True)]
    truth = [case.truth for case in cases]
    through_vae = _through_vae(pipeline, truth)
    painted = {
        "text alone": paint(pipeline, cases, [[] for _ in cases], progress),
        "one garment": paint(pipeline, cases, [[target] for target in targets], progress),
        "another's garment": paint(pipeline, cases, [[target] for target in targets[3:] + targets[:3]], progress),
        "three garments": paint(pipeline, cases, trios, progress),
    }
    pictures = {"the truth": truth, "truth through the VAE": through_vae} | painted
    error = np.stack(truth).astype(float) - np.stack(through_vae)
    hit_shares = _retrieval(encoder, targets, manifest.image_size, seed)
    return DemoReport(
        rows=[_row(name, images, cases, encoder) for name, images in pictures.items()],
        retrieval_at_1=hit_shares[1],
        retrieval_at_3=hit_shares[3],
        vae_psnr_db=float(10 * np.log10(255**2 / np.mean(error**2))),
        third_garment_change=_change(cases, painted["one garment"], painted["three garments"]),
        num_cases=num_cases,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
    )


def _neighbours(
    encoder: RetrievalEncoder, targets: Sequence[DollGarment], size: tuple[int, int]
) -> list[list[DollGarment]]:
    """Return for each target the two other targets of its category whose pictures are most like its own."""
    vectors = encoder.encode_images([Image.fromarray(render_garment(target, size)) for target in targets])
    likeness = vectors @ vectors.T
    # No cosine is as low as -2, so neither the target itself nor another category is chosen.
    np.fill_diagonal(likeness, -2)
    categories = np.array([target.category for target in targets])
    likeness[categories[:, None] != categories[None]] = -2
    neighbours = []
    for nearest in np.argsort(-likeness, axis=1, kind="stable")[:, :2]:
        neighbours.append([targets[index] for index in nearest])
    return neighbours


@torch.inference_mode()
def _through_vae(pipeline: Pipeline, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Return the pictures after the VAE has encoded and decoded them."""
    decoded: list[NDArray[np.uint8]] = []
    for image in images:
        picture = torch.from_numpy(image).permute(2, 0, 1)[None].float().to(pipeline.device) / 127.5 - 1
        factor = pipeline.vae.downsampling
        height, width = picture.shape[2] // factor, picture.shape[3] // factor
        noise = torch.zeros(1, LATENT_CHANNELS, height, width, device=picture.device)
        decoded.append(decode(pipeline.vae, pipeline.vae.encode(picture, noise))[0])
    return decoded


@torch.inference_mode()
def paint(
    pipeline: Pipeline, cases: Sequence[HeldOutCase], garments: Sequence[Sequence[DollGarment]], progress: Progress
) -> list[NDArray[np.uint8]]:
    """Return the edited picture of each case, with its garments in place of retrieved ones.

    The cases run through the pipeline's own stages, several to a batch.
    """
    edited: list[NDArray[np.uint8]] = []
    for start in range(0, len(cases), BATCH):
        batch = cases[start : start + BATCH]
        words = [_pseudo_words(pipeline, case_garments) for case_garments in garments[start : start + BATCH]]
        pictures = edit_together(pipeline, [case.request for case in batch], words)
        for case, picture in zip(batch, pictures, strict=True):
            edited.append(paste_outside(case.request.image, case.request.mask, picture, 0))
            progress()
    return edited


def _pseudo_words(pipeline: Pipeline, garments: Sequence[DollGarment]) -> torch.Tensor | None:
    size = pipeline.manifest.image_size
    pictures = [Image.fromarray(render_garment(garment, size)) for garment in garments]
    return invert(pipeline.garment_encoder, pictures) if pictures else None


def _row(
    name: str, images: Sequence[NDArray[np.uint8]], cases: Sequence[HeldOutCase], encoder: RetrievalEncoder
) -> AgreementRow:
    """Return the agreement of pictures, one for each case, with the targets of the cases."""
    colour, exact, pattern, cut_outs, shop_pictures = [], [], [], [], []
    for image, case in zip(images, cases, strict=True):
        target = case.target
        edit = read_edit(image, case.request.mask, case.person, target)
        colour.append(edit.has_colour)
        exact.append((edit.reading.colour, edit.reading.second_colour) == (target.colour, target.second_colour))
        pattern.append(edit.reading.pattern == target.pattern)
        cut_outs.append(edit.cut_out)
        shop_pictures.append(Image.fromarray(render_garment(target, (image.shape[0], image.shape[1]))))
    likeness = (encoder.encode_images(cut_outs) * encoder.encode_images(shop_pictures)).sum(axis=1)
    plain = np.array([case.target.pattern == "plain" for case in cases])
    return AgreementRow(
        name=name,
        colour=float(np.mean(colour)),
        colour_of_plain=float(np.mean(np.array(colour)[plain])),
        exact_colours=float(np.mean(exact)),
        pattern=float(np.mean(pattern)),
        pattern_of_patterned=float(np.mean(np.array(pattern)[~plain])),
        both=float(np.logical_and(colour, pattern).mean()),
        clip_i=float(likeness.mean()),
    )


def _retrieval(
    encoder: RetrievalEncoder, targets: Sequence[DollGarment], size: tuple[int, int], seed: int
) -> dict[int, float]:
    """Return the shares of full captions that find a matching garment among the first 1 and the first 3.

    A garment matches if it has the target's kind, colour and pattern.
    """
    hits: dict[int, list[bool]] = {1: [], 3: []}
    for number, category in enumerate(CATEGORIES):
        wanted = [target for target in targets if target.category == category]
        rng = np.random.default_rng([seed, number, 99])
        # The keys of a dictionary are distinct and stay in their order.
        distinct = dict.fromkeys(wanted)
        while len(distinct) < max(CATALOGUE_PER_CATEGORY, len(wanted)):
            distinct[sample_split(rng, category, test=True)] = None
        catalogue = list(distinct)
        vectors = encoder.encode_images([Image.fromarray(render_garment(garment, size)) for garment in catalogue])
        scores = encoder.encode_texts([", ".join(sorted(chunks(target))) for target in wanted]) @ vectors.T
        for target, target_scores in zip(wanted, scores, strict=True):
            best = np.argsort(-target_scores, kind="stable")[:3]
            matches = [_matches(catalogue[index], target) for index in best]
            for num_first, results in hits.items():
                results.append(any(matches[:num_first]))
    return {num_first: float(np.mean(results)) for num_first, results in hits.items()}


def _matches(garment: DollGarment, target: DollGarment) -> bool:
    return (garment.kind, garment.colour, garment.pattern) == (target.kind, target.colour, target.pattern)


def _change(
    cases: Sequence[HeldOutCase], before: Sequence[NDArray[np.uint8]], after: Sequence[NDArray[np.uint8]]
) -> float:
    """Return the mean absolute difference between two pictures of each case inside its mask, in levels of 255."""
    changes = [
        np.abs(new.astype(float) - old)[case.request.mask > 0].mean()
        for case, old, new in zip(cases, before, after, strict=True)
    ]
    return float(np.mean(changes))
