"""The edits of an evaluation, kept in a folder, so that a run that was cut short goes on where it stood.

`run` calls it. A folder holds the edits of one Settings:

    settings.json
    CATEGORY/PERSON_GARMENT.png     with the ids of the garments in it, as a PNG text
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fashion_rag.artifacts import read_config
from fashion_rag.atomic_files import write_whole
from fashion_rag.catalogue.garments import Garment
from fashion_rag.data.dresscode import DressCode, Order, Pair, Sample
from fashion_rag.data.image import open_image
from fashion_rag.data.masks import MaskType, repaint_mask_for
from fashion_rag.data.pose import KEYPOINT_FRAME, scale_keypoints
from fashion_rag.data.vitonhd import CATEGORY, VitonHD
from fashion_rag.errors import ArtifactError, InvalidRequest
from fashion_rag.evaluation.editors import Editor
from fashion_rag.manifest import Manifest
from fashion_rag.request import CATEGORIES, MAX_GARMENTS, PLAIN, EditRequest, Shortcuts, Template

Layout = Literal["dresscode", "vitonhd"]
SETTINGS_FILE = "settings.json"
GARMENTS_KEY = "garments"


@dataclass(frozen=True)
class Settings:
    """All that the picture of a sample depends on, beside the sample. Raises InvalidRequest for what does not fit.

    root: of the data set. model: what edits, in words that change wherever pictures could. catalogue: what garments
    are retrieved from, likewise. retrieval: folder of the retrieval files instead; None = no such files.
    """

    root: str
    model: str
    layout: Layout = "dresscode"
    order: Order = "paired"
    num_chunks: int = 3
    num_retrieved: int = 1
    catalogue: str | None = None
    retrieval: str | None = None
    mask_type: MaskType = "bounding_box"
    template: Template = Template.GARMENTS
    steps: int = 50
    guidance_scale: float = 7.5
    shortcuts: Shortcuts = PLAIN
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.num_retrieved <= MAX_GARMENTS:
            raise InvalidRequest("num_retrieved", self.num_retrieved, f"must be from 0 to {MAX_GARMENTS}")
        if self.num_retrieved and self.template is Template.CAPTION:
            raise InvalidRequest("num_retrieved", self.num_retrieved, "must be 0 with the template caption")

    @property
    def name(self) -> str:
        """Return what of it differs within a run: order, garments and chunks."""
        return f"{self.order}-{self.num_retrieved}-garments-{self.num_chunks}-chunks"


@dataclass(frozen=True, eq=False)
class Outcome:
    """An edited sample: mask uint8 [H, W], 1 = repainted; the picture and those of the garments retrieved, RGB."""

    sample: Sample
    mask: NDArray[np.uint8]
    picture: Image.Image
    garments: tuple[Image.Image, ...]


class Edits:
    """The edits of one Settings, made or to be made, in a folder.

    limit: use only the first so many pairs of each category. Raises InvalidRequest for a folder that holds the edits of
    other settings, ArtifactError for a data set that cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        manifest: Manifest,
        categories: Sequence[str] = CATEGORIES,
        limit: int | None = None,
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.manifest = manifest
        self.data = open_data(settings, categories, manifest.image_size)
        numbers = {category: _numbers(self.data.pairs, category)[:limit] for category in categories}
        self.numbers = [number for category in sorted(numbers) for number in numbers[category]]
        _claim(folder, settings)

    def make(self, editor: Editor, batch_size: int, progress: Callable[[int, int], None]) -> None:
        """Edit the samples that have no picture yet; a sample whose garment is not in the photo never gets one.

        progress: takes how many samples are done, and how many there are. Raises as the editor and the data set.
        """
        made = set(self.made())
        missing = [number for number in self.numbers if number not in made]
        progress(len(made), len(self.numbers))
        for start in range(0, len(missing), batch_size):
            samples = [self.data[number] for number in missing[start : start + batch_size]]
            masks = [self.mask(sample) for sample in samples]
            self._edit([(one, mask) for one, mask in zip(samples, masks, strict=True) if mask.any()], editor)
            progress(len(made) + start + len(samples), len(self.numbers))

    def made(self) -> list[int]:
        """Return the numbers of the samples that have a picture."""
        return [number for number in self.numbers if self._path(self.data.pairs[number]).exists()]

    def outcome(self, number: int, editor: Editor) -> Outcome:
        """Return a sample that has a picture, read from disk; `editor` knows the garments that it retrieved."""
        sample = self.data[number]
        picture, garment_ids = _read(self._path(sample))
        if sample.retrieved_paths:
            garments = tuple(open_image(garment) for garment in sample.retrieved_paths)
        else:
            garments = tuple(map(editor.garment_picture, garment_ids))
        return Outcome(sample, self.mask(sample), picture, garments)

    def request(self, sample: Sample, mask: NDArray[np.uint8]) -> EditRequest:
        """Return the edit of a sample; its seed depends on the sample and the settings' seed alone."""
        settings, size = self.settings, self.manifest.image_size
        return EditRequest(
            image=np.array(sample.image),
            mask=mask,
            prompt=sample.caption,
            category=sample.category,
            keypoints=scale_keypoints(sample.keypoints, KEYPOINT_FRAME, size),
            num_garments=settings.num_retrieved,
            template=settings.template,
            seed=zlib.crc32(f"{settings.seed} {sample.category} {sample.person_id}".encode()),
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            shortcuts=settings.shortcuts,
        )

    def mask(self, sample: Sample) -> NDArray[np.uint8]:
        """Return the sample's repaint mask, uint8 [H, W]; all zero where the garment is not in the photo."""
        size, rule_size = self.manifest.image_size, self.manifest.mask_rule_size
        mask_type = self.settings.mask_type
        return repaint_mask_for(sample.label_map, sample.keypoints, sample.category, mask_type, size, rule_size)

    def _edit(self, masked: Sequence[tuple[Sample, NDArray[np.uint8]]], editor: Editor) -> None:
        if not masked:
            return
        samples = [sample for sample, _ in masked]
        requests = [self.request(sample, mask) for sample, mask in masked]
        garments = [_retrieved(sample) for sample in samples] if self.settings.retrieval else None
        for sample, edited in zip(samples, editor.edit(requests, garments), strict=True):
            _write(self._path(sample), edited.picture, edited.garment_ids)

    def _path(self, pair: Pair | Sample) -> Path:
        return self.folder / pair.category / f"{pair.person_id}_{pair.garment_id}.png"


def open_data(settings: Settings, categories: Sequence[str], size: tuple[int, int]) -> DressCode | VitonHD:
    """Return the samples that the settings speak of, with pictures of `size`. Raises as the two readers."""
    root, retrieval = Path(settings.root), Path(settings.retrieval) if settings.retrieval else None
    num_chunks, num_retrieved = settings.num_chunks, settings.num_retrieved if retrieval else 0
    if settings.layout == "vitonhd":
        if set(categories) - {CATEGORY}:
            raise InvalidRequest("categories", list(categories), f"must be {CATEGORY} in the layout vitonhd")
        return VitonHD(
            root,
            settings.order,
            num_chunks=num_chunks,
            size=size,
            retrieval=retrieval,
            num_retrieved=num_retrieved,
        )
    return DressCode(
        root,
        "test",
        settings.order,
        categories=categories,
        num_chunks=num_chunks,
        size=size,
        retrieval=retrieval,
        num_retrieved=num_retrieved,
    )


def _numbers(pairs: Sequence[Pair], category: str) -> list[int]:
    return [number for number, pair in enumerate(pairs) if pair.category == category]


def _claim(folder: Path, settings: Settings) -> None:
    """Write down whose edits the folder holds, or see that they are these settings'."""
    path, wanted = folder / SETTINGS_FILE, asdict(settings)
    if path.exists():
        found = read_config(path)
        differing = [f"{key} is {found.get(key)!r} there" for key in wanted if found.get(key) != wanted[key]]
        if differing:
            raise InvalidRequest("out", str(folder), f"must hold edits of the same settings; {', '.join(differing)}")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(wanted, indent=1) + "\n").encode())


def _retrieved(sample: Sample) -> list[Garment]:
    """Return the garments of the retrieval file, by the ids that a catalogue of the data set gives them."""
    return [
        Garment(path.stem.removesuffix("_cleaned").removesuffix("_1"), sample.category, "", path)
        for path in sample.retrieved_paths
    ]


def _write(path: Path, picture: NDArray[np.uint8], garment_ids: Sequence[str]) -> None:
    text = PngInfo()
    text.add_text(GARMENTS_KEY, json.dumps(garment_ids))
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG", pnginfo=text)
    path.parent.mkdir(exist_ok=True)
    write_whole(path, content.getvalue())


def _read(path: Path) -> tuple[Image.Image, list[str]]:
    try:
        with Image.open(path) as image:
            return image.convert("RGB"), json.loads(image.info[GARMENTS_KEY])
    except (KeyError, OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not an edit of an evaluation; delete it, and it is made again") from error
