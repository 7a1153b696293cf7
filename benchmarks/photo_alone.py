"""The claim: a photo and a sentence are enough, and no photo is stretched.

The 200 held-out cases of `fashion-rag demo evaluate`, one garment each, are edited with the same seeds in these ways:

- with the drawn mask, key points and category, as a data set has them, on the plain photo of the model's shape;
- with the plain photo and a sentence alone, so that all else is found;
- with the same dolls in square and in 16:9 photos, with photo and sentence alone;
- with the same dolls in these photos and the drawn mask, key points and category, where the whole photo is squeezed
  into the model's shape, which is what was done before there were windows.

Agreement is read from pixels inside the drawn mask. An edit that is refused counts as a photo that stays as it was.

What the human parser and the pose estimator see is compared with the truth, too (see
`fashion_rag/demo/model/photo_evaluate.py`): in the plain photos of these cases, in photos of the same dolls of four
times the size, which is nearer to what shoppers have, and in as many drawn photos of all kinds.

    python -m benchmarks.photo_alone --out benchmarks/results/photo_alone.json
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.judging import MEASURES, SEED, changes, judge
from benchmarks.scenes import PHOTO_HEIGHT, Pixels, Scene, scene
from export.runtime import Runtime
from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.retrieval_encoder import RetrievalEncoder
from fashion_rag.data.finish import finish
from fashion_rag.data.window import whole
from fashion_rag.demo.model.evaluate import BATCH, HeldOutCase, make_cases
from fashion_rag.demo.model.photo_evaluate import JOINTS, ReadingReport, case_photos, drawn_photos, evaluate_reading
from fashion_rag.demo.world.draw import render_garment
from fashion_rag.errors import InvalidRequest
from fashion_rag.evaluation.editors import edit_together
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.person.labels import CLASSES
from fashion_rag.pipeline import Pipeline, invert
from fashion_rag.provenance import provenance, write_result
from fashion_rag.request import CompleteRequest, EditRequest

NUM_SHOWN = 6
LARGER = 4
PHOTO_SETS = ("cases", "larger", "photos")


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


def read_set(photo_set: str, num_photos: int) -> ReadingReport:
    """Return how well the bundle's networks read one of PHOTO_SETS."""
    torch.set_num_threads(1)
    bundle = Bundle.open(DEMO_BUNDLE)
    manifest = bundle.manifest
    if photo_set == "photos":
        photos = drawn_photos(num_photos, SEED)
    else:
        cases = make_cases(num_photos, manifest.image_size, SEED, manifest.num_inference_steps, manifest.guidance_scale)
        height, width = manifest.image_size
        factor = LARGER if photo_set == "larger" else 1
        photos = case_photos(cases, (factor * height, factor * width))
    return evaluate_reading(bundle.load_parser(), bundle.load_pose_estimator(), photos, manifest.image_size)


def _reading_table(reports: Sequence[ReadingReport]) -> Table:
    """Return the table of what was seen in the sets of photos; a class or joint that none of them shows is left out."""
    table = Table("what was seen", *PHOTO_SETS)
    table.add_row("label map, mean intersection over union", *[f"{report.mean_iou:.3f}" for report in reports])
    for name in CLASSES:
        cells = [f"{report.iou[name]:.3f}" if name in report.iou else "" for report in reports]
        if any(cells):
            table.add_row(f"  {name}", *cells)
    table.add_row("points within a tenth of the head", *[f"{report.points:.3f}" for report in reports])
    for name in JOINTS:
        cells = [f"{report.points_by_joint[name]:.3f}" if name in report.points_by_joint else "" for report in reports]
        if any(cells):
            table.add_row(f"  {name}", *cells)
    table.add_row("number of persons is right", *[f"{report.num_persons:.3f}" for report in reports])
    nobody = [f"{report.num_seen_as_nobody} of {report.num_without_person}" for report in reports]
    table.add_row("nobody, seen as nobody", *nobody)
    return table


def _way_table(records: Sequence[dict[str, Any]]) -> Table:
    """Return the table of the ways to edit."""
    table = Table("", "refused", "other category", "colour", "pattern", "CLIP-I")
    for record in records:
        cells = [f"{record[name]['mean']:.3f} ({record[name]['change']:+.3f})" for name in MEASURES]
        table.add_row(record["name"], str(len(record["refused"])), str(record["wrong_category"]), *cells)
    return table


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    sheet: Annotated[Path | None, typer.Option(help="Picture of some edits to write.")] = None,
    num_cases: Annotated[int, typer.Option(help="Held-out cases, and drawn photos to be read.")] = 200,
    num_processes: Annotated[int, typer.Option(help="Ways run at once, with a thread each.")] = 2,
    only_readings: Annotated[bool, typer.Option("--only-readings", help="Read the photos, and edit none.")] = False,
) -> None:
    """Read the photos and edit the cases in all ways, print the figures and write them."""
    ways = () if only_readings else WAYS
    with ProcessPoolExecutor(num_processes, get_context("spawn")) as pool:
        readings = list(pool.map(read_set, PHOTO_SETS, [num_cases] * len(PHOTO_SETS)))
        results = list(pool.map(run_way, ways, [num_cases] * len(ways)))
    records = []
    for way, result in zip(ways, results, strict=True):
        record = {"name": way.name, "refused": result["refused"], "wrong_category": result["wrong_category"]}
        records.append(record | changes(result["judged"], results[0]["judged"]))
    console = Console(width=140)
    console.print(_reading_table(readings))
    if records:
        console.print(_way_table(records))
    seen = {name: asdict(report) for name, report in zip(PHOTO_SETS, readings, strict=True)}
    write_result(out, {"from": provenance(), "num_cases": num_cases, "reading": seen, "ways": records})
    if sheet and results:
        _sheet([result["sheet"] for result in results]).save(sheet)


if __name__ == "__main__":
    typer.run(main)
