"""What `make demo` runs: serves the demo bundle here, sends edits to it over HTTP, and draws a sheet of the pictures.

An edit is a photo and a sentence. Category, mask and key points are found by the server, and the sheet shows the mask.

The prompts name colour and pattern, but the default template leaves the prompt out of the text, so only retrieval reads
it. Colour and pattern in a picture therefore come from the garment. Beside each picture stands the same edit by words
alone.
"""

import base64
import io
import json
import statistics
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from fashion_rag.bundle import Bundle
from fashion_rag.data.dresscode import DressCode, Sample
from fashion_rag.data.masks import repaint_mask_for
from fashion_rag.data.pose import KEYPOINT_FRAME, scale_keypoints
from fashion_rag.demo.world.attributes import DollGarment, kind_caption
from fashion_rag.demo.world.catalogue import ensure_demo_world
from fashion_rag.errors import ArtifactError
from fashion_rag.manifest import DEMO_BUNDLE, has_parser
from fashion_rag.request import Template
from serve import app
from serve.ports import free_port

# Category and number of each person on the sheet. They are the ones whose new garments are patterned.
CASES = (("upper_body", 6), ("dresses", 5), ("lower_body", 5), ("upper_body", 3))
EDIT_SEED = 1
EDIT_TIMEOUT_S = 300.0

TITLES = ("photo", "mask found", "garment found", "words alone", "with the garment")
CELL = (320, 240)
GAP, TITLE_HEIGHT, CAPTION_HEIGHT = 16, 44, 52
INK, PAPER, FAINT = (32, 32, 36), (255, 255, 255), (120, 120, 128)


@dataclass(frozen=True)
class SheetCase:
    """An edit of the sheet: a person, and what they are to wear.

    mask, keypoints, category: what the data set has of the person. The sheet does without; benchmarks send it.
    prompt: with colour and pattern. kind: without them.
    """

    person: Image.Image
    mask: Image.Image
    keypoints: list[list[float]]
    category: str
    prompt: str
    kind: str


@dataclass(frozen=True)
class SheetRow:
    """A row of the sheet: pictures in the order of TITLES, the prompt, and a remark on what was found."""

    pictures: tuple[Image.Image, ...]
    caption: str
    remark: str


def run(out: Path = Path("out/demo.png"), keep: bool = False, bundle: Path = DEMO_BUNDLE) -> None:
    """Write the sheet to `out`, and a photo and its found mask beside it; with `keep`, serve on until Ctrl-C.

    Raises ArtifactError for a bundle that cannot be served, or has no human parser.
    """
    if not has_parser(bundle):
        raise ArtifactError(f"{bundle}: has no human parser, which the demo needs: it sends photos without masks")
    console = Console()
    console.print("Drawing a catalogue of paper dolls' garments ...")
    world = out.parent / "world"
    catalogue = ensure_demo_world(world, bundle)
    cases = read_cases(world, bundle)
    console.print("Starting Ray Serve ...")
    url = f"http://127.0.0.1:{(port := free_port())}"
    app.start(app.local_config(bundle, catalogue), "127.0.0.1", port)
    try:
        rows, masks, timings = _edit_all(url, cases, console)
        draw_sheet(rows).save(out)
        cases[0].person.save(out.with_name("person.png"))
        masks[0].save(out.with_name("mask.png"))
        _report(console, out, timings, cases[0])
        if keep:
            console.print(f"Still serving on {url}; Ctrl-C ends it.")
            threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        app.stop()


def read_cases(world: Path, bundle: Path) -> list[SheetCase]:
    """Return the CASES of a world that `ensure_demo_world` has drawn. Each person is to wear another's garment."""
    manifest = Bundle.open(bundle).manifest
    attributes = json.loads((world / "attributes.json").read_text())
    samples = list(DressCode(world, order="unpaired", size=manifest.image_size))
    cases = []
    for category, number in CASES:
        of_category: list[Sample] = [sample for sample in samples if sample.category == category]
        sample = of_category[number]
        size = manifest.image_size
        mask = repaint_mask_for(
            sample.label_map, sample.keypoints, category, "bounding_box", size, manifest.mask_rule_size
        )
        cases.append(
            SheetCase(
                person=sample.image,
                mask=Image.fromarray(mask * np.uint8(255)),
                keypoints=scale_keypoints(sample.keypoints, KEYPOINT_FRAME, size).tolist(),
                category=category,
                prompt=sample.caption,
                kind=kind_caption(DollGarment(**attributes[sample.garment_id])),
            )
        )
    return cases


def _edit_all(
    url: str, cases: list[SheetCase], console: Console
) -> tuple[list[SheetRow], list[Image.Image], list[dict[str, float]]]:
    """Return a row of the sheet, the found mask and the time in each stage, for each case."""
    rows, masks, timings = [], [], []
    with httpx.Client(base_url=url, timeout=EDIT_TIMEOUT_S) as client:
        for number, case in enumerate(cases, 1):
            console.print(f"Edit {number} of {len(cases)}: {case.prompt}")
            words = _edit(client, case, prompt=case.kind, num_garments=0, template=Template.CAPTION)
            edited = _edit(client, case, prompt=case.prompt, num_garments=1)
            garment = edited["garments"][0]
            in_shop = client.get(f"/v1/garments/{garment['id']}/image").raise_for_status().content
            mask = _mask(client, case, edited["category"])
            pictures = (case.person, _veiled(case.person, mask), _open(in_shop), _picture(words), _picture(edited))
            remark = f"found: {garment['caption']} (cosine {garment['score']:.2f}); words alone: {case.kind}"
            rows.append(SheetRow(pictures, case.prompt, remark))
            masks.append(mask)
            timings.append(edited["timings_ms"])
    return rows, masks, timings


def _edit(client: httpx.Client, case: SheetCase, **fields: Any) -> dict[str, Any]:
    """Return the reply to one edit."""
    reply = client.post("/v1/images/edits", files={"image": png(case.person)}, data={"seed": EDIT_SEED} | fields)
    reply.raise_for_status()
    body: dict[str, Any] = reply.json()
    return body


def _mask(client: httpx.Client, case: SheetCase, category: str) -> Image.Image:
    """Return the mask that an edit of the case has, white where to repaint."""
    reply = client.post("/v1/images/masks", files={"image": png(case.person)}, data={"category": category})
    return _open(base64.b64decode(reply.raise_for_status().json()["b64_json"]))


def draw_sheet(rows: list[SheetRow]) -> Image.Image:
    """Return the rows below each other, every picture the size of a CELL, with titles over the columns."""
    height, width = CELL
    row_height = height + CAPTION_HEIGHT + GAP
    size = (GAP + len(TITLES) * (width + GAP), TITLE_HEIGHT + GAP + len(rows) * row_height)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(20), ImageFont.load_default(16)
    lefts = [GAP + column * (width + GAP) for column in range(len(TITLES))]
    for title, left in zip(TITLES, lefts, strict=True):
        draw.text((left + width / 2, TITLE_HEIGHT - 8), title, INK, large, anchor="ms")
    for number, row in enumerate(rows):
        top = TITLE_HEIGHT + number * row_height
        for picture, left in zip(row.pictures, lefts, strict=True):
            sheet.paste(picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), (left, top))
        draw.text((GAP, top + height + 24), f"“{row.caption}”", INK, large, anchor="ls")
        draw.text((GAP, top + height + 46), row.remark, FAINT, small, anchor="ls")
    return sheet


def _report(console: Console, out: Path, timings: list[dict[str, float]], case: SheetCase) -> None:
    table = Table("stage", "median ms", title="One edit with one garment")
    for stage in timings[0]:
        table.add_row(stage, f"{statistics.median(timing[stage] for timing in timings):.0f}")
    console.print(table)
    console.print(f"The pictures are in [bold]{out}[/bold]. Next, `make serve`, and from another terminal:")
    fields = {"image": f"@{out.with_name('person.png')}", "prompt": case.prompt}
    options = " ".join(f'-F {name}="{value}"' for name, value in fields.items())
    picture = "jq -r '.data[0].b64_json' | base64 -d > edited.png"
    command = f"  curl {options} http://127.0.0.1:8000/v1/images/edits | {picture}"
    console.print(command, markup=False, soft_wrap=True, highlight=False)


def _veiled(photo: Image.Image, mask: Image.Image) -> Image.Image:
    """Return the photo with what is to be repainted under a grey veil."""
    veil = Image.new("RGB", photo.size, (128, 128, 128))
    return Image.composite(Image.blend(photo, veil, 0.8), photo, mask)


def _picture(reply: dict[str, Any]) -> Image.Image:
    return _open(base64.b64decode(reply["data"][0]["b64_json"]))


def _open(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def png(image: Image.Image) -> bytes:
    """Return the picture as the content of a PNG file."""
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()
