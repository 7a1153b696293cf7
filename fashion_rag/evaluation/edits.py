"""The edits of an evaluation, kept in a folder: a run that was cut short makes only the edits that are missing.

`run` calls it. A folder holds the edits that were made with one EvaluationSettings:

    settings.json                   the settings
    CATEGORY/PERSON_GARMENT.png     the edited photo, with the ids of its retrieved garments in a PNG text
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
from fashion_rag.data.masks import repaint_mask_for
from fashion_rag.data.pose import KEYPOINT_FRAME, scale_keypoints
from fashion_rag.data.vitonhd import CATEGORY, VitonHD
from fashion_rag.errors import ArtifactError, InvalidRequest
from fashion_rag.evaluation.editors import Editor
from fashion_rag.manifest import Manifest
from fashion_rag.request import CATEGORIES, MAX_GARMENTS, PLAIN, EditRequest, MaskType, Shortcuts, Template

Layout = Literal["dresscode", "vitonhd"]
MaskSource = Literal["given", "parser"]
SETTINGS_FILE = "settings.json"
GARMENTS_KEY = "garments"


@dataclass(frozen=True)
class EvaluationSettings:
    """The settings of an evaluation: everything that an edited photo depends on beside its sample.

    root: folder of the data set. model: identifies what edits; it must differ wherever the pictures could differ.
    catalogue: identifies in the same way what garments are retrieved from; None for no catalogue. retrieval: folder of
    retrieval files to use in place of a catalogue; None for no such files. mask_from: whether the edits have the masks
    and key points of the data set, or those that the editor finds in the photos.
    Raises InvalidRequest for a value that is outside its range.
    """

    root: str
    model: str
    layout: Layout = "dresscode"
    order: Order = "paired"
    num_chunks: int = 3
    num_retrieved: int = 1
    catalogue: str | None = None
    retrieval: str | None = None
    mask_from: MaskSource = "given"
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
        """Return a name for the folder: the order and the numbers of garments and chunks, which differ within a run."""
        return f"{self.order}-{self.num_retrieved}-garments-{self.num_chunks}-chunks"


@dataclass(frozen=True, eq=False)
class EditedSample:
    """A sample with its edit.

    mask: uint8 [H, W], 1 where the photo is to be repainted by the data set's label map. Edits with found masks are
    measured in the same place, so that the figures can be compared. picture: the edited photo, RGB. garments: the
    pictures of the garments that were retrieved, RGB, best first.
    """

    sample: Sample
    mask: NDArray[np.uint8]
    picture: Image.Image
    garments: tuple[Image.Image, ...]


class EditFolder:
    """A folder for the edits of one EvaluationSettings.

    limit: use only the first so many pairs of each category.
    Raises InvalidRequest for a folder that holds edits of other settings, and ArtifactError for a data set that cannot
    be read.
    """

    def __init__(
        self,
        folder: Path,
        settings: EvaluationSettings,
        manifest: Manifest,
        categories: Sequence[str] = CATEGORIES,
        limit: int | None = None,
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.manifest = manifest
        self.data = open_data(settings, categories, manifest.image_size)
        self.numbers: list[int] = []
        for category in sorted(set(categories)):
            self.numbers += _numbers(self.data.pairs, category)[:limit]
        _write_settings(folder, settings)

    def make(self, editor: Editor, batch_size: int, progress: Callable[[int, int], None]) -> list[str]:
        """Edit the samples that have no picture yet, except those whose garment is not in the photo.

        Return a line for each photo in which the editor found nothing to repaint, which has no picture either. There
        are such photos only where masks are not given.

        progress: takes how many samples are done, and how many there are.
        Raises what the editor and the data set raise.
        """
        not_found: list[str] = []
        made = set(self.made())
        missing = [number for number in self.numbers if number not in made]
        progress(len(made), len(self.numbers))
        for start in range(0, len(missing), batch_size):
            samples = [self.data[number] for number in missing[start : start + batch_size]]
            masks = [self.mask(sample) for sample in samples]
            visible = [(sample, mask) for sample, mask in zip(samples, masks, strict=True) if mask.any()]
            if visible:
                not_found += self._edit(visible, editor)
            progress(len(made) + start + len(samples), len(self.numbers))
        return not_found

    def made(self) -> list[int]:
        """Return the numbers of the samples that have a picture."""
        return [number for number in self.numbers if self._path(self.data.pairs[number]).exists()]

    def edited_sample(self, number: int, editor: Editor) -> EditedSample:
        """Return a sample that has a picture, read from disk. The pictures of its garments come from `editor`."""
        sample = self.data[number]
        picture, garment_ids = _read(self._path(sample))
        if sample.retrieved_paths:
            garments = [open_image(path) for path in sample.retrieved_paths]
        else:
            garments = [editor.garment_picture(garment_id) for garment_id in garment_ids]
        return EditedSample(sample, self.mask(sample), picture, tuple(garments))

    def request(self, sample: Sample, mask: NDArray[np.uint8]) -> EditRequest:
        """Return the request to edit a sample, which has the mask unless masks are to be found.

        Its seed depends only on the sample and on the seed of the settings.
        """
        settings, size = self.settings, self.manifest.image_size
        is_given = settings.mask_from == "given"
        return EditRequest(
            image=np.array(sample.image),
            mask=mask if is_given else None,
            mask_type=settings.mask_type,
            prompt=sample.caption,
            category=sample.category,
            keypoints=scale_keypoints(sample.keypoints, KEYPOINT_FRAME, size) if is_given else None,
            num_garments=settings.num_retrieved,
            template=settings.template,
            seed=zlib.crc32(f"{settings.seed} {sample.category} {sample.person_id}".encode()),
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            shortcuts=settings.shortcuts,
        )

    def mask(self, sample: Sample) -> NDArray[np.uint8]:
        """Return the sample's repaint mask, uint8 [H, W]; all zero where the garment is not in the photo."""
        return repaint_mask_for(
            sample.label_map,
            sample.keypoints,
            sample.category,
            mask_type=self.settings.mask_type,
            size=self.manifest.image_size,
            rule_size=self.manifest.mask_rule_size,
        )

    def _edit(self, samples_and_masks: Sequence[tuple[Sample, NDArray[np.uint8]]], editor: Editor) -> list[str]:
        """Edit the samples together, and write their pictures. Return a line for each that nothing is found in."""
        try:
            self._edit_together(samples_and_masks, editor)
        except InvalidRequest as error:
            if error.field != "image" or self.settings.mask_from == "given":
                raise
            if len(samples_and_masks) == 1:
                ((sample, _),) = samples_and_masks
                return [f"{sample.category}/{sample.person_id}: {error}"]
            # Which of the photos it is shows when they are edited alone.
            not_found: list[str] = []
            for pair in samples_and_masks:
                not_found += self._edit([pair], editor)
            return not_found
        return []

    def _edit_together(self, samples_and_masks: Sequence[tuple[Sample, NDArray[np.uint8]]], editor: Editor) -> None:
        samples = [sample for sample, _ in samples_and_masks]
        requests = [self.request(sample, mask) for sample, mask in samples_and_masks]
        garments = None
        if self.settings.retrieval:
            garments = [_retrieved(sample) for sample in samples]
        for sample, edited in zip(samples, editor.edit(requests, garments), strict=True):
            _write(self._path(sample), edited.picture, edited.garment_ids)

    def _path(self, pair: Pair | Sample) -> Path:
        return self.folder / pair.category / f"{pair.person_id}_{pair.garment_id}.png"


def open_data(settings: EvaluationSettings, categories: Sequence[str], size: tuple[int, int]) -> DressCode | VitonHD:
    """Return the data set of the settings, with pictures of `size` (height, width).

    Raises InvalidRequest for categories that the layout does not have, and what `DressCode` and `VitonHD` raise.
    """
    root = Path(settings.root)
    retrieval = Path(settings.retrieval) if settings.retrieval else None
    num_retrieved = settings.num_retrieved if retrieval else 0
    if settings.layout == "vitonhd":
        if set(categories) - {CATEGORY}:
            raise InvalidRequest("categories", list(categories), f"must be {CATEGORY} in the layout vitonhd")
        return VitonHD(
            root,
            settings.order,
            num_chunks=settings.num_chunks,
            size=size,
            retrieval=retrieval,
            num_retrieved=num_retrieved,
        )
    return DressCode(
        root,
        "test",
        settings.order,
        categories=categories,
        num_chunks=settings.num_chunks,
        size=size,
        retrieval=retrieval,
        num_retrieved=num_retrieved,
    )


def _numbers(pairs: Sequence[Pair], category: str) -> list[int]:
    return [number for number, pair in enumerate(pairs) if pair.category == category]


def _write_settings(folder: Path, settings: EvaluationSettings) -> None:
    """Write the settings to the folder. Raise InvalidRequest if it holds edits of other settings."""
    path, wanted = folder / SETTINGS_FILE, asdict(settings)
    if path.exists():
        # Edits from before masks could be found have given ones.
        stored = {"mask_from": "given"} | read_config(path)
        differing = [f"{key} is {stored.get(key)!r} there" for key in wanted if stored.get(key) != wanted[key]]
        if differing:
            raise InvalidRequest("out", str(folder), f"must hold edits of the same settings; {', '.join(differing)}")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(wanted, indent=1) + "\n").encode())


def _retrieved(sample: Sample) -> list[Garment]:
    """Return the garments from the retrieval file, with the ids that they have in a catalogue of the data set."""
    return [
        Garment(path.stem.removesuffix("_cleaned").removesuffix("_1"), sample.category, "", path)
        for path in sample.retrieved_paths
    ]


def _write(path: Path, picture: NDArray[np.uint8], garment_ids: Sequence[str]) -> None:
    """Write an edited photo, with the ids of its garments in a PNG text."""
    text = PngInfo()
    text.add_text(GARMENTS_KEY, json.dumps(garment_ids))
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG", pnginfo=text)
    path.parent.mkdir(exist_ok=True)
    write_whole(path, content.getvalue())


def _read(path: Path) -> tuple[Image.Image, list[str]]:
    """Return an edited photo and the ids of its garments."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB"), json.loads(image.info[GARMENTS_KEY])
    except (KeyError, OSError, ValueError) as error:
        raise ArtifactError(
            f"{path}: not an edit of an evaluation; delete the file, and the next run makes it again"
        ) from error
