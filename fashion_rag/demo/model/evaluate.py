"""The demo bundle's table: do colour and pattern of the retrieved garment arrive in the picture, and at what ceiling?

Called by `fashion-rag demo evaluate`. Cases are unpaired: a person who wears something else, and a target garment in a
combination of kind, colours and pattern that training never saw. Attributes are read from pixels (`measure`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.retrieval_encoder import RetrievalEncoder
from fashion_rag.data.image import paste_outside
from fashion_rag.data.masks import repaint_mask_for
from fashion_rag.data.pose import KEYPOINT_FRAME, scale_keypoints
from fashion_rag.demo.model.cases import sample_split
from fashion_rag.demo.world.agreement import read_edit
from fashion_rag.demo.world.attributes import Garment, Person, chunks, dressed, kind_caption, sample_person
from fashion_rag.demo.world.draw import render, render_garment
from fashion_rag.evaluation.editors import edit_together
from fashion_rag.models.unet import LATENT_CHANNELS
from fashion_rag.pipeline import Pipeline, decode, invert
from fashion_rag.request import CATEGORIES, EditRequest

BATCH = 25
NUM_PAINTED = 4  # pictures a case: no garment, its own, another's, three
CATALOGUE_PER_CATEGORY = 200
Progress = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """One held-out edit: who, what they should wear, and the request with their photo and mask."""

    person: Person
    target: Garment
    request: EditRequest

    @property
    def truth(self) -> NDArray[np.uint8]:
        """Return the picture that the world itself draws of the person in the target."""
        return render(dressed(self.person, self.target), self.request.mask.shape).image


@dataclass(frozen=True)
class Row:
    """Agreement with the target garment, as shares of the cases.

    colour: the main colour is one of the target's, see `measure.main_colours`. exact_colours: first and second colour
    as read with the pattern. pattern: as read. both: colour and pattern. `_of_plain`, `_of_patterned`: among these
    targets only. clip_i: cosine of the painted garment's and the garment picture's vectors by the bundle's own
    retrieval encoder, so not an independent judge.
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
class Report:
    """The table's rows, retrieval at 1 and 3 (same kind, colour and pattern), and what was asked."""

    rows: list[Row]
    retrieval_at_1: float
    retrieval_at_3: float
    vae_psnr_db: float
    third_garment_change: float
    num_cases: int
    num_inference_steps: int
    guidance_scale: float

    def as_dict(self) -> dict[str, object]:
        """Return the plain values, for JSON."""
        return asdict(self)


def make_cases(num_cases: int, size: tuple[int, int], seed: int, steps: int, guidance_scale: float) -> list[Case]:
    """Return the held-out cases with distinct targets, categories in turn."""
    rng = np.random.default_rng(seed)
    cases: list[Case] = []
    seen: set[Garment] = set()
    while len(cases) < num_cases:
        category = CATEGORIES[len(cases) % len(CATEGORIES)]
        target = sample_split(rng, category, test=True)
        person = sample_person(rng, category)
        if target in seen or person.worn(category) == target:
            continue
        seen.add(target)
        drawn = render(person, size)
        frame = scale_keypoints(drawn.keypoints, size, KEYPOINT_FRAME)
        mask = repaint_mask_for(drawn.label_map, frame, category, "bounding_box", size, KEYPOINT_FRAME)
        request = EditRequest(
            drawn.image,
            mask,
            kind_caption(target),
            category,
            drawn.keypoints,
            seed=int(rng.integers(2**31)),
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
        )
        cases.append(Case(person, target, request))
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
) -> Report:
    """Return the table of the bundle on `num_cases` held-out cases; `progress` is called once for each painted picture.

    Steps and guidance default to the manifest's. dtype: of the networks' weights. Raises ArtifactError for a bundle
    that does not load.
    """
    pipeline = Pipeline.load(bundle_path, device=device, dtype=dtype)
    encoder = Bundle.open(bundle_path).load_retrieval_encoder(device)
    manifest = pipeline.manifest
    steps = steps or manifest.num_inference_steps
    guidance_scale = manifest.guidance_scale if guidance_scale is None else guidance_scale
    cases = make_cases(num_cases, manifest.image_size, seed, steps, guidance_scale)
    targets = [case.target for case in cases]
    near = _neighbours(encoder, targets, manifest.image_size)
    trios = [[one, *two] for one, two in zip(targets, near, strict=True)]
    truth = [case.truth for case in cases]
    through_vae = _through_vae(pipeline, truth)
    painted = {
        "text alone": paint(pipeline, cases, [[] for _ in cases], progress),
        "one garment": paint(pipeline, cases, [[one] for one in targets], progress),
        "another's garment": paint(pipeline, cases, [[one] for one in targets[3:] + targets[:3]], progress),
        "three garments": paint(pipeline, cases, trios, progress),
    }
    pictures = {"the truth": truth, "truth through the VAE": through_vae} | painted
    error = np.stack(truth).astype(float) - np.stack(through_vae)
    at = _retrieval(encoder, targets, manifest.image_size, seed)
    return Report(
        rows=[_row(name, images, cases, encoder) for name, images in pictures.items()],
        retrieval_at_1=at[1],
        retrieval_at_3=at[3],
        vae_psnr_db=float(10 * np.log10(255**2 / np.mean(error**2))),
        third_garment_change=_change(cases, painted["one garment"], painted["three garments"]),
        num_cases=num_cases,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
    )


def _neighbours(encoder: RetrievalEncoder, targets: Sequence[Garment], size: tuple[int, int]) -> list[list[Garment]]:
    """Return for each target the two other targets of its category whose pictures are most like it."""
    vectors = encoder.encode_images([Image.fromarray(render_garment(one, size)) for one in targets])
    alike = vectors @ vectors.T
    for i, one in enumerate(targets):
        alike[i, [other.category != one.category or i == j for j, other in enumerate(targets)]] = -2
    return [[targets[j] for j in np.argsort(-row, kind="stable")[:2]] for row in alike]


@torch.inference_mode()
def _through_vae(pipeline: Pipeline, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    out: list[NDArray[np.uint8]] = []
    for image in images:
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float().to(pipeline.device) / 127.5 - 1
        side = pipeline.vae.downsampling
        noise = torch.zeros(1, LATENT_CHANNELS, x.shape[2] // side, x.shape[3] // side, device=x.device)
        out.append(decode(pipeline.vae, pipeline.vae.encode(x, noise))[0])
    return out


@torch.inference_mode()
def paint(
    pipeline: Pipeline, cases: Sequence[Case], garments: Sequence[Sequence[Garment]], progress: Progress
) -> list[NDArray[np.uint8]]:
    """Return the edits, several to a batch; otherwise exactly the pipeline's stages."""
    out: list[NDArray[np.uint8]] = []
    for start in range(0, len(cases), BATCH):
        batch = cases[start : start + BATCH]
        words = [_pseudo_words(pipeline, worn) for worn in garments[start : start + BATCH]]
        pictures = edit_together(pipeline, [case.request for case in batch], words)
        for case, picture in zip(batch, pictures, strict=True):
            out.append(paste_outside(case.request.image, case.request.mask, picture, 0))
            progress()
    return out


def _pseudo_words(pipeline: Pipeline, garments: Sequence[Garment]) -> torch.Tensor | None:
    pictures = [Image.fromarray(render_garment(one, pipeline.manifest.image_size)) for one in garments]
    return invert(pipeline.garment_encoder, pictures) if pictures else None


def _row(name: str, images: Sequence[NDArray[np.uint8]], cases: Sequence[Case], encoder: RetrievalEncoder) -> Row:
    colour, exact, pattern, cut_outs, shop = [], [], [], [], []
    for image, case in zip(images, cases, strict=True):
        target = case.target
        found = read_edit(image, case.request.mask, case.person, target)
        colour.append(found.has_colour)
        exact.append((found.reading.colour, found.reading.second_colour) == (target.colour, target.second_colour))
        pattern.append(found.reading.pattern == target.pattern)
        cut_outs.append(found.cut_out)
        shop.append(Image.fromarray(render_garment(target, (image.shape[0], image.shape[1]))))
    likeness = (encoder.encode_images(cut_outs) * encoder.encode_images(shop)).sum(axis=1)
    plain = np.array([case.target.pattern == "plain" for case in cases])
    return Row(
        name,
        colour=float(np.mean(colour)),
        colour_of_plain=float(np.mean(np.array(colour)[plain])),
        exact_colours=float(np.mean(exact)),
        pattern=float(np.mean(pattern)),
        pattern_of_patterned=float(np.mean(np.array(pattern)[~plain])),
        both=float(np.logical_and(colour, pattern).mean()),
        clip_i=float(likeness.mean()),
    )


def _retrieval(
    encoder: RetrievalEncoder, targets: Sequence[Garment], size: tuple[int, int], seed: int
) -> dict[int, float]:
    """Return how often a full caption finds a garment of the same kind, colour and pattern among the first 1 and 3."""
    found: dict[int, list[bool]] = {1: [], 3: []}
    for number, category in enumerate(CATEGORIES):
        wanted = [one for one in targets if one.category == category]
        rng = np.random.default_rng([seed, number, 99])
        shop = dict.fromkeys(wanted)
        while len(shop) < max(CATALOGUE_PER_CATEGORY, len(wanted)):
            shop[sample_split(rng, category, test=True)] = None
        stock = list(shop)
        vectors = encoder.encode_images([Image.fromarray(render_garment(one, size)) for one in stock])
        scores = encoder.encode_texts([", ".join(sorted(chunks(one))) for one in wanted]) @ vectors.T
        for one, row in zip(wanted, scores, strict=True):
            best = [stock[j] for j in np.argsort(-row, kind="stable")[:3]]
            hits = [(b.kind, b.colour, b.pattern) == (one.kind, one.colour, one.pattern) for b in best]
            for k, results in found.items():
                results.append(any(hits[:k]))
    return {k: float(np.mean(results)) for k, results in found.items()}


def _change(cases: Sequence[Case], before: Sequence[NDArray[np.uint8]], after: Sequence[NDArray[np.uint8]]) -> float:
    """Return the mean absolute difference inside the masks, in levels of 255."""
    changes = [
        np.abs(a.astype(float) - b)[case.request.mask > 0].mean()
        for case, a, b in zip(cases, after, before, strict=True)
    ]
    return float(np.mean(changes))
