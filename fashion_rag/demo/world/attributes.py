"""The attributes of garments and persons in the paper-doll world, their sampling, and the captions of garments.

`figure` and `clothes` turn attributes into shapes, `draw` turns them into pixels, and `layout` writes them to disk.
"""

import zlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Colour: TypeAlias = tuple[int, int, int]
T = TypeVar("T")

PALETTE: dict[str, Colour] = {
    "red": (206, 24, 42),
    "orange": (255, 136, 0),
    "yellow": (255, 221, 31),
    "green": (38, 158, 56),
    "teal": (18, 196, 190),
    "blue": (36, 70, 214),
    "purple": (134, 34, 156),
    "pink": (255, 126, 190),
    "grey": (124, 130, 138),
    "black": (26, 26, 32),
    "white": (252, 252, 252),
}
PATTERNS = ("plain", "horizontal_stripes", "vertical_stripes", "checks", "dots", "two_tone")

SKINS: tuple[Colour, ...] = (
    (255, 226, 204),
    (246, 204, 172),
    (230, 178, 138),
    (202, 146, 104),
    (164, 110, 76),
    (126, 82, 58),
    (94, 62, 48),
)
HAIR_STYLES = ("short", "bob", "long", "bun", "ponytail", "curly", "twin_tails")
HAIR_COLOURS: tuple[Colour, ...] = ((58, 38, 30), (104, 66, 42), (150, 84, 46), (222, 186, 116), (176, 170, 168))
SHOE_COLOURS: tuple[Colour, ...] = ((92, 74, 66), (150, 108, 78), (80, 84, 108), (196, 176, 158))
# The colours of the wall and the floor.
BACKGROUNDS: tuple[tuple[Colour, Colour], ...] = (
    ((206, 224, 236), (176, 200, 216)),
    ((236, 212, 210), (216, 186, 184)),
    ((214, 230, 208), (188, 208, 182)),
    ((234, 224, 196), (212, 200, 168)),
    ((222, 212, 234), (196, 184, 212)),
    ((206, 228, 222), (178, 206, 198)),
)

# The least distance in CIE Lab between the two colours of a garment.
MIN_SECOND_COLOUR_DISTANCE = 45.0


@dataclass(frozen=True)
class Kind:
    """A kind of garment: its category and the values that its attributes may take ("" where one does not apply)."""

    category: str
    nouns: tuple[str, ...]
    materials: tuple[str, ...]
    sleeves: tuple[str, ...] = ("",)
    lengths: tuple[str, ...] = ("",)
    necklines: tuple[str, ...] = ("",)


KINDS: dict[str, Kind] = {
    "t-shirt": Kind("upper_body", ("t-shirt", "tee"), ("cotton", "jersey"), ("short",), necklines=("round", "v")),
    "tank top": Kind("upper_body", ("tank top", "vest top"), ("cotton", "ribbed"), ("none",), necklines=("round", "v")),
    "shirt": Kind(
        "upper_body", ("shirt", "button-up shirt"), ("cotton", "linen"), ("short", "long"), necklines=("collar",)
    ),
    "sweater": Kind("upper_body", ("sweater", "pullover"), ("wool", "knitted"), ("long",), necklines=("round", "high")),
    "hoodie": Kind("upper_body", ("hoodie", "hooded sweatshirt"), ("fleece", "cotton"), ("long",), necklines=("hood",)),
    "trousers": Kind("lower_body", ("trousers", "pants"), ("cotton", "twill"), lengths=("full", "cropped")),
    "shorts": Kind("lower_body", ("shorts", "short pants"), ("cotton", "linen"), lengths=("thigh",)),
    "skirt": Kind("lower_body", ("skirt", "flared skirt"), ("cotton", "flowing"), lengths=("knee",)),
    "long skirt": Kind("lower_body", ("long skirt", "maxi skirt"), ("cotton", "flowing"), lengths=("ankle",)),
    "summer dress": Kind(
        "dresses", ("summer dress", "sundress"), ("cotton", "light"), ("straps",), ("knee",), ("straight", "v")
    ),
    "shift dress": Kind(
        "dresses", ("shift dress", "straight dress"), ("cotton", "linen"), ("short",), ("knee",), ("round", "v")
    ),
    "gown": Kind("dresses", ("gown", "evening gown"), ("satin", "silk"), ("straps", "long"), ("floor",), ("round",)),
}


@dataclass(frozen=True)
class DollGarment:
    """A garment of the paper-doll world.

    second_colour: None for a plain garment, and only for that. sleeve, length, neckline: values as in `KINDS`.
    """

    category: str
    kind: str
    colour: str
    pattern: str
    second_colour: str | None
    sleeve: str
    length: str
    neckline: str


@dataclass(frozen=True)
class Body:
    """The build of a person and their place in the picture.

    width, height: factors on the usual size. shift: movement to the right, in 96ths of the picture height.
    """

    width: float
    height: float
    shift: float


@dataclass(frozen=True)
class Arm:
    """The angles of an arm in degrees: 0 hangs straight down, and positive angles point away from the body."""

    upper: float
    fore: float


@dataclass(frozen=True)
class Pose:
    """The posture of a person.

    right_stance, left_stance: how far each ankle stands out, in 96ths of the picture height.
    """

    right_arm: Arm
    left_arm: Arm
    right_stance: float
    left_stance: float


@dataclass(frozen=True)
class Hair:
    """The hair of a person, in a style of `HAIR_STYLES`."""

    style: str
    colour: Colour


@dataclass(frozen=True)
class DollPerson:
    """A dressed person in front of a background.

    background: the colours of the wall and the floor. outfit: in the order of painting, the garment of the lower body
    and that of the upper body, or a dress alone.
    """

    body: Body
    pose: Pose
    skin: Colour
    hair: Hair
    shoes: Colour
    background: tuple[Colour, Colour]
    outfit: tuple[DollGarment, ...]

    def worn(self, category: str) -> DollGarment:
        """Return the garment of `category` in the outfit. Raises KeyError if there is none."""
        for garment in self.outfit:
            if garment.category == category:
                return garment
        raise KeyError(category)


def lab(colour: ArrayLike) -> NDArray[np.float64]:
    """Return the CIE Lab values (D65), float64 [..., 3], of sRGB colours [..., 3] in 0..255."""
    srgb = np.asarray(colour, dtype=np.float64) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.moveaxis(linear @ to_xyz.T / np.array([0.95047, 1.0, 1.08883]), -1, 0)
    fx, fy, fz = (np.where(v > 216 / 24389, np.cbrt(v), (24389 / 27 * v + 16) / 116) for v in (x, y, z))
    return np.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], axis=-1)


def lab_distance(a: Colour, b: Colour) -> float:
    """Return the Euclidean distance between two sRGB colours in CIE Lab (CIE 1976)."""
    return float(np.linalg.norm(lab(a) - lab(b)))


def _second_colours(colour: Colour) -> tuple[str, ...]:
    """Return the names of the colours that differ enough from a garment's first colour."""
    return tuple(name for name, rgb in PALETTE.items() if lab_distance(rgb, colour) >= MIN_SECOND_COLOUR_DISTANCE)


# The second colours that a garment may have, by its first colour.
SECOND_COLOURS: dict[str, tuple[str, ...]] = {name: _second_colours(colour) for name, colour in PALETTE.items()}


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def sample_garment(rng: np.random.Generator, category: str) -> DollGarment:
    """Return a random garment of `category`. One in three is plain."""
    name = _pick(rng, [name for name, kind in KINDS.items() if kind.category == category])
    kind = KINDS[name]
    colour = _pick(rng, tuple(PALETTE))
    pattern = "plain" if rng.random() < 1 / 3 else _pick(rng, PATTERNS[1:])
    second_colour = None if pattern == "plain" else _pick(rng, SECOND_COLOURS[colour])
    return DollGarment(
        category=category,
        kind=name,
        colour=colour,
        pattern=pattern,
        second_colour=second_colour,
        sleeve=_pick(rng, kind.sleeves),
        length=_pick(rng, kind.lengths),
        neckline=_pick(rng, kind.necklines),
    )


def num_garments(category: str) -> int:
    """Return how many distinct garments `sample_garment` can return for `category`."""
    kinds = [kind for kind in KINDS.values() if kind.category == category]
    num_shapes = sum(len(kind.sleeves) * len(kind.lengths) * len(kind.necklines) for kind in kinds)
    num_pairs = sum(len(seconds) for seconds in SECOND_COLOURS.values())
    return num_shapes * (len(PALETTE) + len(PATTERNS[1:]) * num_pairs)


def _sample_arm(rng: np.random.Generator) -> Arm:
    """Return an arm that hangs down, is held out, or has its hand on the hip."""
    style = rng.random()
    if style < 0.5:
        return Arm(rng.uniform(8, 18), rng.uniform(-2, 10))
    if style < 0.8:
        return Arm(rng.uniform(22, 38), rng.uniform(8, 34))
    return Arm(rng.uniform(40, 46), rng.uniform(-50, -42))


def sample_person(rng: np.random.Generator, category: str, garment: DollGarment | None = None) -> DollPerson:
    """Return a random person who wears `garment`, or a random garment of `category`.

    Where the outfit needs a second garment, that one is plain.
    """
    body = Body(rng.uniform(0.93, 1.08), rng.uniform(0.93, 1.0), rng.uniform(-2.5, 2.5))
    pose = Pose(_sample_arm(rng), _sample_arm(rng), rng.uniform(0, 3), rng.uniform(0, 3))
    garment = garment or sample_garment(rng, category)
    outfit: tuple[DollGarment, ...]
    match category:
        case "upper_body":
            outfit = (_sample_plain(rng, "lower_body"), garment)
        case "lower_body":
            outfit = (garment, _sample_plain(rng, "upper_body"))
        case _:
            outfit = (garment,)
    hair = Hair(_pick(rng, HAIR_STYLES), _pick(rng, HAIR_COLOURS))
    return DollPerson(
        body=body,
        pose=pose,
        skin=_pick(rng, SKINS),
        hair=hair,
        shoes=_pick(rng, SHOE_COLOURS),
        background=_pick(rng, BACKGROUNDS),
        outfit=outfit,
    )


def _sample_plain(rng: np.random.Generator, category: str) -> DollGarment:
    return replace(sample_garment(rng, category), pattern="plain", second_colour=None)


def dressed(person: DollPerson, garment: DollGarment) -> DollPerson:
    """Return the same person with `garment` in the place of their garment of its category.

    Raises KeyError if they wear no garment of this category.
    """
    old = person.worn(garment.category)
    return replace(person, outfit=tuple(garment if worn is old else worn for worn in person.outfit))


_PATTERN_CHUNKS = {
    "plain": ("plain {0} colour", "solid {0} fabric", "all {0} design"),
    "horizontal_stripes": ("{0} and {1} horizontal stripes", "{0} and {1} sideways stripes"),
    "vertical_stripes": ("{0} and {1} vertical stripes", "{0} and {1} upright stripes"),
    "checks": ("{0} and {1} checks", "{0} and {1} squares"),
    "dots": ("{0} fabric with {1} dots", "{1} spots on {0}"),
    "two_tone": ("{0} upper half and {1} lower half", "{0} above and {1} below"),
}
_PATTERN_WORDS = {
    "plain": ("plain", "simple"),
    "horizontal_stripes": ("striped",),
    "vertical_stripes": ("pinstriped", "striped"),
    "checks": ("checked", "chequered"),
    "dots": ("dotted", "polka dot"),
    "two_tone": ("two-tone", "colour-block"),
}
_SLEEVE_CHUNKS = {
    "none": ("no sleeves", "sleeveless cut"),
    "short": ("short sleeves",),
    "long": ("long sleeves",),
    "straps": ("thin straps", "shoulder straps"),
}
_LENGTH_CHUNKS = {
    "full": ("full length legs", "long legs"),
    "cropped": ("cropped legs", "ankle-baring cut"),
    "thigh": ("short legs", "above the knee cut"),
    "knee": ("knee length", "knee-length cut"),
    "ankle": ("ankle length", "long cut"),
    "floor": ("floor length", "floor-length cut"),
}
_NECKLINE_CHUNKS = {
    "round": ("round neck", "crew neck"),
    "v": ("v-neck", "v-shaped neckline"),
    "collar": ("collar and buttons", "pointed collar"),
    "high": ("high neck", "turtleneck"),
    "hood": ("hood", "hood and pocket"),
    "straight": ("straight neckline",),
}


def chunks(garment: DollGarment) -> tuple[str, str, str]:
    """Return the caption of a garment as three lower-case noun chunks: colours and pattern, cut, and kind.

    Several words may fit a garment; the same garment always gets the same ones.
    """
    # Each choice of words takes other bits of this number.
    bits = zlib.crc32(repr(astuple(garment)).encode())

    def word(options: Sequence[str], turn: int) -> str:
        return options[(bits >> (5 * turn)) % len(options)]

    kind = KINDS[garment.kind]
    colours = word(_PATTERN_CHUNKS[garment.pattern], 0).format(garment.colour, garment.second_colour)
    shape = (
        _LENGTH_CHUNKS.get(garment.length),
        _SLEEVE_CHUNKS.get(garment.sleeve),
        _NECKLINE_CHUNKS.get(garment.neckline),
    )
    cut = [word(options, turn) for turn, options in enumerate(shape, 1) if options]
    noun = f"{word(_PATTERN_WORDS[garment.pattern], 4)} {word(kind.materials, 5)} {word(kind.nouns, 3)}"
    return colours, " and ".join(cut), noun


def kind_caption(garment: DollGarment) -> str:
    """Return the kind of a garment without its colours and pattern, such as "a t-shirt" or "trousers"."""
    return garment.kind if garment.kind in ("trousers", "shorts") else f"a {garment.kind}"
