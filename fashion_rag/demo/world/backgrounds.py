"""Backgrounds of drawn photos: rooms, plain colours, gradients, stripes, blocks and noise. `photos` calls it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fashion_rag.demo.world.attributes import Colour

Background = NDArray[np.uint8]  # [H, W, 3]
KINDS = ("plain", "gradient", "stripes", "blocks", "noise")


def draw_room(size: tuple[int, int], colours: tuple[Colour, Colour], horizon: float) -> Background:
    """Return a wall above a floor. colours: of the wall and the floor. horizon: the row at which the floor begins."""
    wall, floor = colours
    image = np.empty((*size, 3), np.uint8)
    border = int(np.clip(round(horizon), 0, size[0]))
    image[:border], image[border:] = wall, floor
    return image


def draw_background(rng: np.random.Generator, size: tuple[int, int]) -> Background:
    """Return a random background of one of the KINDS."""
    match KINDS[int(rng.integers(len(KINDS)))]:
        case "plain":
            image = np.broadcast_to(_colour(rng), (*size, 3))
        case "gradient":
            image = _gradient(rng, size)
        case "stripes":
            image = _stripes(rng, size)
        case "blocks":
            image = _blocks(rng, size)
        case _:
            image = _noise(rng, size)
    return np.clip(image, 0, 255).astype(np.uint8)


def _colour(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a random colour, which is pale in half of the cases."""
    colour = rng.uniform(0, 255, 3)
    return colour if rng.random() < 0.5 else 255 - 0.35 * (255 - colour)


def _gradient(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float64]:
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.linspace(-0.5, 0.5, size[0])[:, None], np.linspace(-0.5, 0.5, size[1])[None, :]
    share = (0.5 + (np.sin(angle) * rows + np.cos(angle) * columns) / np.sqrt(2))[..., None]
    blended: NDArray[np.float64] = share * _colour(rng) + (1 - share) * _colour(rng)
    return blended


def _stripes(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float64]:
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.05, 0.5) * max(size)
    rows, columns = np.arange(size[0])[:, None], np.arange(size[1])[None, :]
    is_second = (np.sin(angle) * rows + np.cos(angle) * columns) % period < period * rng.uniform(0.2, 0.8)
    return np.where(is_second[..., None], _colour(rng), _colour(rng))


def _blocks(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float64]:
    image = np.empty((*size, 3))
    image[:] = _colour(rng)
    for _ in range(rng.integers(3, 12)):
        top, left = rng.integers(size[0]), rng.integers(size[1])
        bottom = top + int(rng.uniform(0.05, 0.6) * size[0]) + 1
        right = left + int(rng.uniform(0.05, 0.6) * size[1]) + 1
        image[top:bottom, left:right] = _colour(rng)
    return image


def _noise(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float64]:
    """Return noise of a random grain."""
    grain = int(rng.choice([1, 3, 8, 20]))
    coarse = rng.uniform(0, 255, (-(-size[0] // grain), -(-size[1] // grain), 3)).astype(np.uint8)
    noise = np.asarray(Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC), np.float64)
    strength = rng.uniform(0.1, 0.7)
    return strength * noise + (1 - strength) * _colour(rng)
