"""Whether an edited paper doll wears the garment that it should: kind, colour and pattern are read from the picture.

The demo's own evaluation reads garments with `read_edit`. For a data set that `layout.write_dresscode` has drawn,
`fashion-rag evaluate` gives the evaluation a `DollJudge`.
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
    """What an edited picture shows in the place of a garment.

    has_colour: the main colour of the picture is one of the garment's main colours. cut_out: that part of the picture.
    """

    reading: Reading
    has_colour: bool
    cut_out: Image.Image


def read_edit(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], person: DollPerson, garment: DollGarment
) -> EditReading:
    """Return what an edited picture of `person` shows where `garment` would show inside the mask.

    image: uint8 [H, W, 3]. mask: uint8 [H, W]. Raises ValueError if no pixel of the garment lies inside the mask.
    """
    coverage, maps = pattern_maps(dressed(person, garment), garment.category, (image.shape[0], image.shape[1]))
    inside = coverage * mask
    return EditReading(
        reading=read_garment(image, inside, maps),
        has_colour=main_colour(image, inside) in main_colours(garment, inside, maps),
        cut_out=cut_out(image, inside > 0.5),
    )


def read_kind(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], person: DollPerson, category: str, reading: Reading
) -> str:
    """Return the kind whose drawing has the smallest squared error to the picture inside the mask.

    Every cut of every kind of the category is drawn on the person, in the colours and pattern of `reading`.
    """
    inside = mask > 0
    shown = image[inside].astype(np.float64)
    errors: dict[str, float] = {}
    for name, kind in KINDS.items():
        if kind.category != category:
            continue
        for sleeve, length, neckline in product(kind.sleeves, kind.lengths, kind.necklines):
            garment = DollGarment(
                category=category,
                kind=name,
                colour=reading.colour,
                pattern=reading.pattern,
                second_colour=reading.second_colour,
                sleeve=sleeve,
                length=length,
                neckline=neckline,
            )
            drawn = render(dressed(person, garment), (image.shape[0], image.shape[1])).image
            error = float(((drawn[inside] - shown) ** 2).sum())
            errors[name] = min(error, errors.get(name, error))
    return min(errors, key=errors.__getitem__)


class DollJudge:
    """A judge of edited paper dolls, which compares them with the garments that their captions describe.

    root: folder of a data set that `layout.write_dresscode` has drawn. Raises ArtifactError if its files of persons and
    garments cannot be read.
    """

    def __init__(self, root: Path) -> None:
        self.persons = {name: as_person(fields) for name, fields in read_config(root / PERSONS_FILE).items()}
        self.garments = {name: DollGarment(**fields) for name, fields in read_config(root / ATTRIBUTES_FILE).items()}

    def __call__(self, edited_samples: Sequence[EditedSample]) -> dict[str, list[float]]:
        """Return for kind, colour and pattern whether each sample agrees with its garment, 1 or 0."""
        verdicts: dict[str, list[float]] = {"kind": [], "colour": [], "pattern": []}
        for edited in edited_samples:
            person = self.persons[edited.sample.person_id]
            garment = self.garments[edited.sample.garment_id]
            image = np.asarray(edited.picture)
            edit = read_edit(image, edited.mask, person, garment)
            kind = read_kind(image, edited.mask, person, garment.category, edit.reading)
            verdicts["kind"].append(float(kind == garment.kind))
            verdicts["colour"].append(float(edit.has_colour))
            verdicts["pattern"].append(float(edit.reading.pattern == garment.pattern))
        return verdicts


def judge_of(root: Path) -> DollJudge | None:
    """Return the judge of a data set that `layout.write_dresscode` has drawn, and None for any other data set.

    Raises what DollJudge raises.
    """
    return DollJudge(root) if (root / PERSONS_FILE).is_file() else None


def as_person(fields: Mapping[str, Any]) -> DollPerson:
    """Return the person whose fields `dataclasses.asdict` has returned. Lists, as in JSON, may stand for tuples."""
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
