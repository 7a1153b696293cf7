"""The claim: a photo and a sentence are enough, and no photo is stretched.

The 200 held-out cases of `fashion-rag demo evaluate`, one garment each, are edited with the same seeds in these ways:

- with the drawn mask, key points and category, as a data set has them, on the plain photo of the model's shape;
- with the plain photo and a sentence alone, so that all else is found;
- with the same dolls in square and in 16:9 photos, with photo and sentence alone;
- with the same dolls in these photos and the drawn mask, key points and category, where the whole photo is squeezed
  into the model's shape, which is what was done before there were windows.

Agreement is read from pixels inside the drawn mask. An edit that is refused counts as a photo that stays as it was.

    python -m benchmarks.photo_alone --out benchmarks/results/photo_alone.json
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.judging import MEASURES, SEED, changes, judge
from export.runtime import Runtime
from fashion_rag.catalogue.retrieval_encoder import RetrievalEncoder
from fashion_rag.data.finish import finish
from fashion_rag.data.window import whole
from fashion_rag.demo.model.evaluate import BATCH, HeldOutCase, make_cases
from fashion_rag.demo.world.attributes import DollPerson
from fashion_rag.demo.world.draw import render, render_garment
from fashion_rag.errors import InvalidRequest
from fashion_rag.evaluation.editors import edit_together
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.pipeline import Pipeline, invert
from fashion_rag.provenance import provenance, write_result
from fashion_rag.request import CompleteRequest, EditRequest

Pixels = NDArray[np.uint8]

# A doll in a photo of another shape is drawn twice as large as on its own.
ENLARGED = 2
PHOTO_HEIGHT = 256
# The share of a drawn doll's height at which the floor begins.
FLOOR_SHARE = 80 / 96
NUM_SHOWN = 6


class Way(NamedTuple):
    """One way to edit the cases. aspect: width by height of the photo; None = the plain photo of the doll.

    given: whether mask, key points and category are given and the whole photo is squeezed into the model's shape.
    """

    name: str
    aspect: float | None
    given: bool


WAYS = (
    Way("mask, points, category given", None, given=True),
    Way("photo and sentence alone", None, given=False),
    Way("square, photo and sentence alone", 1.0, given=False),
    Way("square, all given, squeezed", 1.0, given=True),
    Way("16:9, photo and sentence alone", 16 / 9, given=False),
    Way("16:9, all given, squeezed", 16 / 9, given=True),
)


@dataclass(frozen=True, eq=False)
class Scene:
    """A photo, uint8 [H, W, 3], in which a drawn doll stands with its upper left corner at row `top`, column `left`.

    enlarged: how many times larger the doll is than the picture that its case was drawn as.
    """

    photo: Pixels
    top: int
    left: int
    enlarged: int

    def doll(self, photo: Pixels, size: tuple[int, int]) -> Pixels:
        """Return the doll's part of a photo like this one, reduced to the `size` of the case, uint8 [H, W, 3]."""
        height, width = size[0] * self.enlarged, size[1] * self.enlarged
        part = photo[self.top : self.top + height, self.left : self.left + width]
        return np.array(Image.fromarray(part).reduce(self.enlarged))

    def mask(self, mask: Pixels) -> Pixels:
        """Return a mask of the case as a mask of the photo, uint8 [H, W]."""
        enlarged = mask.repeat(self.enlarged, axis=0).repeat(self.enlarged, axis=1)
        placed = np.zeros(self.photo.shape[:2], np.uint8)
        placed[self.top : self.top + enlarged.shape[0], self.left : self.left + enlarged.shape[1]] = enlarged
        return placed


def scene(case: HeldOutCase, aspect: float | None, rng: np.random.Generator) -> Scene:
    """Return a photo of this width by height in which the doll of the case stands at a random place."""
    if aspect is None:
        return Scene(case.request.image, 0, 0, 1)
    height, width = (side * ENLARGED for side in case.request.image.shape[:2])
    photo = _background(case.person, (PHOTO_HEIGHT, round(PHOTO_HEIGHT * aspect)))
    top = int(rng.integers(PHOTO_HEIGHT - height + 1))
    left = int(rng.integers(photo.shape[1] - width + 1))
    photo[top + round(FLOOR_SHARE * height) :] = case.person.background[1]
    photo[top : top + height, left : left + width] = render(case.person, (height, width)).image
    return Scene(photo, top, left, ENLARGED)


def _background(person: DollPerson, size: tuple[int, int]) -> Pixels:
    """Return the wall behind a person as a picture of this size."""
    return np.full((*size, 3), person.background[0], np.uint8)


def _request(case: HeldOutCase, placed: Scene, given: bool) -> EditRequest:
    """Return the edit of a case in its photo."""
    drawn = case.request
    request = EditRequest(
        image=placed.photo,
        prompt=drawn.prompt,
        seed=drawn.seed,
        num_inference_steps=drawn.num_inference_steps,
        guidance_scale=drawn.guidance_scale,
    )
    if not given:
        return request
    assert drawn.keypoints is not None and drawn.mask is not None
    return replace(
        request,
        mask=placed.mask(drawn.mask),
        category=drawn.category,
        keypoints=drawn.keypoints * placed.enlarged + [placed.left, placed.top],
        window=whole((placed.photo.shape[0], placed.photo.shape[1])),
    )


@cache
def _loaded() -> tuple[Pipeline, Any]:
    torch.set_num_threads(1)
    return Runtime(str(DEMO_BUNDLE)).open().load_pipeline(), RetrievalEncoder.load(DEMO_BUNDLE / "retrieval")


@torch.inference_mode()
def run_way(way: Way, num_cases: int) -> dict[str, Any]:
    """Edit all cases in one way; return their agreement, the edits that were refused and why, and some pictures."""
    pipeline, encoder = _loaded()
    manifest = pipeline.manifest
    cases = make_cases(num_cases, manifest.image_size, SEED, manifest.num_inference_steps, manifest.guidance_scale)
    rng = np.random.default_rng(SEED)
    scenes = [scene(case, way.aspect, rng) for case in cases]
    refused: dict[int, str] = {}
    edits: dict[int, CompleteRequest] = {}
    for number, (case, placed) in enumerate(zip(cases, scenes, strict=True)):
        try:
            ((edits[number], _),) = pipeline.complete([_request(case, placed, way.given)])
        except InvalidRequest as error:
            refused[number] = str(error)
    photos = [placed.photo for placed in scenes]
    numbers = list(edits)
    for start in range(0, len(numbers), BATCH):
        batch = numbers[start : start + BATCH]
        for number, photo in zip(batch, _painted(pipeline, cases, edits, batch), strict=True):
            photos[number] = photo
    size = manifest.image_size
    dolls = [placed.doll(photo, size) for placed, photo in zip(scenes, photos, strict=True)]
    wrong_category = sum(edit.category != cases[number].target.category for number, edit in edits.items())
    shown = [number for number in edits if number < NUM_SHOWN]
    return {
        "judged": judge(dolls, cases, encoder),
        "refused": refused,
        "wrong_category": wrong_category,
        "sheet": [_shown(edits[number], photos[number]) for number in shown],
    }


def _painted(
    pipeline: Pipeline, cases: Sequence[HeldOutCase], edits: dict[int, CompleteRequest], batch: Sequence[int]
) -> list[Pixels]:
    """Return the edited photos of a batch of cases, with the target of each as its garment."""
    size = pipeline.manifest.image_size
    garments = [Image.fromarray(render_garment(cases[number].target, size)) for number in batch]
    words = [row[None] for row in invert(pipeline.garment_encoder, garments)]
    requests = [edits[number] for number in batch]
    pictures = edit_together(pipeline, requests, words)
    return [finish(request, picture) for request, picture in zip(requests, pictures, strict=True)]


def _shown(edit: CompleteRequest, photo: Pixels) -> Pixels:
    """Return the photo, the photo with its mask greyed out, and the edited photo, side by side."""
    covered = edit.image.copy()
    covered[edit.mask > 0] = covered[edit.mask > 0] // 3 + 128
    return np.concatenate([edit.image, covered, photo], axis=1)


def _sheet(rows: Sequence[Sequence[Pixels]]) -> Image.Image:
    """Return one picture with a row of pictures for each way, all of the height of the larger photos."""
    lines = []
    for row in rows:
        pictures = [Image.fromarray(pixels) for pixels in row]
        line = [
            picture.resize((round(picture.width * PHOTO_HEIGHT / picture.height), PHOTO_HEIGHT)) for picture in pictures
        ]
        lines.append(line)
    width = max(sum(picture.width for picture in line) for line in lines)
    sheet = Image.new("RGB", (width, PHOTO_HEIGHT * len(lines)), "white")
    for number, line in enumerate(lines):
        left = 0
        for picture in line:
            sheet.paste(picture, (left, number * PHOTO_HEIGHT))
            left += picture.width
    return sheet


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    sheet: Annotated[Path | None, typer.Option(help="Picture of some edits to write.")] = None,
    num_cases: Annotated[int, typer.Option(help="Held-out cases.")] = 200,
    num_processes: Annotated[int, typer.Option(help="Ways run at once, with a thread each.")] = 2,
) -> None:
    """Edit the cases in all ways, print the figures and write them."""
    with ProcessPoolExecutor(num_processes, get_context("spawn")) as pool:
        results = list(pool.map(run_way, WAYS, [num_cases] * len(WAYS)))
    table = Table("", "refused", "other category", "colour", "pattern", "CLIP-I")
    records = []
    for way, result in zip(WAYS, results, strict=True):
        change = changes(result["judged"], results[0]["judged"])
        cells = [f"{change[name]['mean']:.3f} ({change[name]['change']:+.3f})" for name in MEASURES]
        table.add_row(way.name, str(len(result["refused"])), str(result["wrong_category"]), *cells)
        records.append(
            {"name": way.name, "refused": result["refused"], "wrong_category": result["wrong_category"]} | change
        )
    Console(width=140).print(table)
    write_result(out, {"from": provenance(), "num_cases": num_cases, "ways": records})
    if sheet:
        _sheet([result["sheet"] for result in results]).save(sheet)


if __name__ == "__main__":
    typer.run(main)
