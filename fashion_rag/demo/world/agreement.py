"""Whether an edited paper doll wears what was meant: kind, colour and pattern, read from the picture.

The demo's own evaluation reads garments with `read_edit`; `fashion-rag evaluate` hands a `DollJudge` to the evaluation
of a data set that `layout.write_dresscode` has drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fashion_rag.artifacts import read_config
from fashion_rag.demo.world.attributes import KINDS, Arm, Body, DollGarment, DollPerson, Hair, Pose, dressed
from fashion_rag.demo.world.draw import pattern_maps, render
from fashion_rag.demo.world.layout import ATTRIBUTES_FILE, PERSONS_FILE
from fashion_rag.demo.world.measure import Reading, main_colour, main_colours, read_garment
from fashion_rag.evaluation.edits import EditedSample
from fashion_rag.evaluation.pictures import cut_out


@dataclass(frozen=True, eq=False)
class EditReading:
    """What an edit shows where the garment would. has_colour: its main colour is one of the garment's main colours."""

    reading: Reading
    has_colour: bool
    cut_out: Image.Image


def read_edit(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], person: DollPerson, garment: DollGarment
) -> EditReading:
    """Return what the picture uint8 [H, W, 3] of a person shows where `garment` and the mask [H, W] both are.

    Raises ValueError where they never are.
    """
    coverage, maps = pattern_maps(dressed(person, garment), garment.category, (image.shape[0], image.shape[1]))
    inside = coverage * mask
    return EditReading(
        read_garment(image, inside, maps),
        main_colour(image, inside) in main_colours(garment, inside, maps),
        cut_out(image, inside > 0.5),
    )


def read_kind(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], person: DollPerson, category: str, reading: Reading
) -> str:
    """Return the kind whose drawing is nearest to the picture inside the mask, by squared error: no network looks.

    Every cut of every kind of the category is drawn on the person, in the colours and pattern that were read.
    """
    inside = mask > 0
    shown = image[inside].astype(np.float64)
    errors: dict[str, float] = {}
    for name, kind in KINDS.items():
        if kind.category != category:
            continue
        for cut in product(kind.sleeves, kind.lengths, kind.necklines):
            garment = DollGarment(category, name, reading.colour, reading.pattern, reading.second_colour, *cut)
            drawn = render(dressed(person, garment), (image.shape[0], image.shape[1])).image
            error = float(((drawn[inside] - shown) ** 2).sum())
            errors[name] = min(error, errors.get(name, error))
    return min(errors, key=errors.__getitem__)


class DollJudge:
    """For each edited whether kind, colour and pattern are those of the garment that the caption describes, 1 or 0.

    kind: as `read_kind`. colour: the main colour is one of the garment's. pattern: as read. root: of a data set that
    `layout.write_dresscode` has drawn; raises ArtifactError for one that does not know its persons.
    """

    def __init__(self, root: Path) -> None:
        self.persons = {name: as_person(fields) for name, fields in read_config(root / PERSONS_FILE).items()}
        self.garments = {name: DollGarment(**fields) for name, fields in read_config(root / ATTRIBUTES_FILE).items()}

    def __call__(self, edited_samples: Sequence[EditedSample]) -> dict[str, list[float]]:
        """Return by name a figure for each edited."""
        verdicts: dict[str, list[float]] = {"kind": [], "colour": [], "pattern": []}
        for edited in edited_samples:
            person = self.persons[edited.sample.person_id]
            garment = self.garments[edited.sample.garment_id]
            image = np.asarray(edited.picture)
            found = read_edit(image, edited.mask, person, garment)
            kind = read_kind(image, edited.mask, person, garment.category, found.reading)
            verdicts["kind"].append(float(kind == garment.kind))
            verdicts["colour"].append(float(found.has_colour))
            verdicts["pattern"].append(float(found.reading.pattern == garment.pattern))
        return verdicts


def judge_of(root: Path) -> DollJudge | None:
    """Return the judge of a data set that `layout.write_dresscode` has drawn, None for any other.

    Raises as DollJudge.
    """
    return DollJudge(root) if (root / PERSONS_FILE).is_file() else None


def as_person(fields: Mapping[str, Any]) -> DollPerson:
    """Return the person of what `dataclasses.asdict` made of one, with lists for tuples, as JSON has them."""
    pose = fields["pose"]
    wall, floor = fields["background"]
    return DollPerson(
        body=Body(**fields["body"]),
        pose=Pose(Arm(**pose["right_arm"]), Arm(**pose["left_arm"]), pose["right_stance"], pose["left_stance"]),
        skin=_colour(fields["skin"]),
        hair=Hair(fields["hair"]["style"], _colour(fields["hair"]["colour"])),
        shoes=_colour(fields["shoes"]),
        background=(_colour(wall), _colour(floor)),
        outfit=tuple(DollGarment(**garment) for garment in fields["outfit"]),
    )


def _colour(rgb: Sequence[int]) -> tuple[int, int, int]:
    red, green, blue = rgb
    return red, green, blue
