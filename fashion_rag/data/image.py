"""Pictures in and out: decoding uploads, model tensors, the garment crop, pasting the result back.

The pipeline uses the tensor functions and `paste_outside`; the servers and the command line use `open_image` and
`open_mask`. Sizes are (height, width).

The functions that make tensors import PyTorch themselves, because a server that only opens pictures does without it.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fashion_rag.errors import InvalidRequest

if TYPE_CHECKING:
    import torch

# Only these: Pillow also knows formats that start other programs (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MIN_SIDE = 16
# Room for the 50-megapixel sensors of phones.
MAX_PIXELS = 64_000_000

# warnings.catch_warnings swaps a list that all threads share, so only one may hold it.
_warnings_lock = threading.Lock()


def to_tensor(image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    """The RGB picture as float32 [3, H, W] in [-1, 1], bicubic to `size`; the aspect ratio is not kept."""
    import torch

    height, width = size
    pixels = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
    # Contiguous NCHW: a channels-last view costs torch's GroupNorm on a CPU three to four digits.
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() / 255 * 2 - 1


def to_uint8(picture: torch.Tensor) -> NDArray[np.uint8]:
    """A decoded picture, [3, H, W] or [B, 3, H, W] around [-1, 1], as uint8 with channels last, rounded."""
    import torch

    levels = ((picture.detach().float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    pixels: NDArray[np.uint8] = levels.movedim(-3, -1).contiguous().cpu().numpy()
    return pixels


def binarise(mask: torch.Tensor) -> torch.Tensor:
    """A new mask of the same shape and dtype: 1 where `mask` >= 0.5, else 0."""
    return (mask >= 0.5).to(mask.dtype)


def vision_crop(garment: Image.Image, picture_size: tuple[int, int], crop: int) -> NDArray[np.uint8]:
    """The uint8 [crop, crop, 3] part of a garment picture that the vision tower sees.

    Resized to `picture_size` first, then short side to `crop`, then the centre: top and bottom of a tall garment are
    cut, as in the published evaluation.
    """
    import torch

    # Parity: in the published evaluation pictures went through float32 and were truncated, not rounded, to bytes.
    truncated = ((to_tensor(garment, picture_size) + 1) / 2 * 255).to(torch.uint8)
    height, width = (int(crop * side / min(picture_size)) for side in picture_size)
    image = Image.fromarray(truncated.permute(1, 2, 0).contiguous().numpy())
    resized = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - crop) // 2, (width - crop) // 2
    return resized[top : top + crop, left : left + crop]


def vision_pixels(
    garment: Image.Image, picture_size: tuple[int, int], crop: int, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """The vision tower's input for an RGB garment picture: float32 [3, crop, crop], `vision_crop` normalised."""
    import torch

    levels = torch.from_numpy(vision_crop(garment, picture_size, crop)).permute(2, 0, 1).contiguous().float()
    return (levels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def open_image(data: bytes | Path, *, field: str = "image", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The uploaded picture as 8-bit RGB, upright (EXIF), transparency on white; the first frame of an animation.

    Raises InvalidRequest, naming `field`, for what is no whole picture of FORMATS, has more than `max_pixels` (known
    before anything is decoded) or a side under MIN_SIDE.
    """
    image = _decode(data, field, max_pixels)
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    return image


def open_mask(
    data: bytes | Path, size: tuple[int, int] | None = None, *, field: str = "mask", max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """The uploaded mask as uint8 [H, W], 1 = repaint; nearest to `size` where given.

    White marks what to repaint. In a picture that is not opaque everywhere the transparent part does instead, as in
    OpenAI's image edits. Raises InvalidRequest as `open_image`, and for a mask that marks nothing.
    """
    image = _decode(data, field, max_pixels)
    marked = _hole(image)
    mask = (np.asarray(image.convert("L")) >= 128).astype(np.uint8) if marked is None else marked
    if size is not None:
        mask = np.array(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))
    return _marking(mask, field)


def open_hole(data: bytes | Path, *, field: str = "mask", max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8] | None:
    """The transparent part of an uploaded picture as a mask, uint8 [H, W]; None for one that is opaque everywhere.

    Raises InvalidRequest as `open_mask`.
    """
    mask = _hole(_decode(data, field, max_pixels))
    return None if mask is None else _marking(mask, field)


def paste_outside(
    original: NDArray[np.uint8], mask: NDArray[np.uint8], picture: NDArray[np.uint8], feather_px: int
) -> NDArray[np.uint8]:
    """The edited photo, uint8 [H, W, 3]: `picture` where `mask` is set, else `original` pixel for pixel.

    original: [H, W, 3]. mask: [H, W], nonzero = repainted. picture: [h, w, 3], resized to the original's size.
    feather_px: over so many pixels, all inside the mask, the original fades into the picture.
    """
    height, width = mask.shape
    if picture.shape != original.shape:
        picture = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
    edited = original.copy()
    if not mask.any():
        return edited
    # Large photos are mostly outside. One pixel more, as the ramp begins at the mask's edge.
    area = tuple(
        slice(max(0, int(marked[0]) - 1), int(marked[-1]) + 2)
        for marked in (np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0)))
    )
    inside = mask[area] != 0
    weight = _ramp(mask[area], feather_px)[inside][:, None]
    edited[area][inside] = (weight * picture[area][inside] + (1 - weight) * original[area][inside]).round()
    return edited


def _ramp(mask: NDArray[np.uint8], feather_px: int) -> NDArray[np.float32]:
    """Weights [H, W]: 0 outside the mask, rising by 1 / (feather_px + 1) a pixel inwards, then 1."""
    inside = mask != 0
    total = inside.astype(np.float32)
    for _ in range(feather_px):
        inside = _erode(inside)
        total += inside
    weights: NDArray[np.float32] = total / np.float32(feather_px + 1)
    return weights


def _erode(area: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The area without its outermost pixels; the border of the picture is no edge of the area."""
    rows = area.copy()
    rows[1:] &= area[:-1]
    rows[:-1] &= area[1:]
    eroded = rows.copy()
    eroded[:, 1:] &= rows[:, :-1]
    eroded[:, :-1] &= rows[:, 1:]
    return eroded


def _decode(data: bytes | Path, field: str, max_pixels: int) -> Image.Image:
    """The picture upright, in mode RGB, or RGBA where the file has transparency."""
    shown = f"{len(data)} bytes" if isinstance(data, bytes) else str(data)
    source = io.BytesIO(data) if isinstance(data, bytes) else data
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(source, formats=FORMATS) as image:
                _check_size(image.size, field, max_pixels)
                return _eight_bit(ImageOps.exif_transpose(image))
        except Image.DecompressionBombError as error:
            raise InvalidRequest(field, shown, f"must have at most {max_pixels} pixels") from error
        except (OSError, SyntaxError, TypeError, ValueError, struct.error) as error:  # as Pillow raises them
            rule = f"must be a whole picture of 8 or 16 bits a channel, in one of {', '.join(FORMATS)}"
            raise InvalidRequest(field, shown, rule) from error


def _hole(image: Image.Image) -> NDArray[np.uint8] | None:
    if image.mode != "RGBA" or (alpha := np.asarray(image.getchannel("A"))).min() == 255:
        return None
    return (alpha < 128).astype(np.uint8)


def _marking(mask: NDArray[np.uint8], field: str) -> NDArray[np.uint8]:
    if not mask.any():
        raise InvalidRequest(field, "nothing marked", "must mark the part to repaint: white, or transparent")
    return mask


def _check_size(size: tuple[int, int], field: str, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise InvalidRequest(field, f"{width}x{height} pixels", f"must have at most {max_pixels} pixels")
    if min(size) < MIN_SIDE:
        raise InvalidRequest(field, f"{width}x{height} pixels", f"each side must have at least {MIN_SIDE} pixels")


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit grey instead of scaling it.
        levels = np.asarray(image).astype(np.float32) / 257
        image = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
    return image.convert("RGBA" if image.has_transparency_data else "RGB")
