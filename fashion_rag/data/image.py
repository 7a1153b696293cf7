"""Pictures in and out: decoding uploads, making tensors, cropping garments, pasting the result back.

The pipeline uses the functions for tensors, and `paste_outside`. The servers and the command line use `open_photo` and
`open_mask`, and `open_image` for garments. Sizes are (height, width).

The functions that make tensors import PyTorch themselves, because a server that only opens pictures does without it.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fashion_rag.data.colour import is_two_way, to_srgb
from fashion_rag.data.uploaded_mask import CANVAS, edge_share, marked
from fashion_rag.data.window import has_shape
from fashion_rag.errors import InvalidRequest

if TYPE_CHECKING:
    import torch

# No other formats are opened, because Pillow starts other programs for some (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MIN_SIDE = 16
# Photos of 50 megapixels, as phones take them, pass.
MAX_PIXELS = 64_000_000

# warnings.catch_warnings replaces a list that all threads share, so only one thread may be in it.
_warnings_lock = threading.Lock()


def to_tensor(image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    """Return the RGB picture as float32 [3, H, W] in [-1, 1], resized to `size`; the aspect ratio is not kept."""
    import torch

    height, width = size
    pixels = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
    # Contiguous, because with a channels-last view torch's GroupNorm loses three to four digits on a CPU.
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() / 255 * 2 - 1


def to_uint8(picture: torch.Tensor) -> NDArray[np.uint8]:
    """Return a decoded picture, [3, H, W] or [B, 3, H, W] around [-1, 1], rounded to uint8 with channels last."""
    import torch

    levels = ((picture.detach().float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    pixels: NDArray[np.uint8] = levels.movedim(-3, -1).contiguous().cpu().numpy()
    return pixels


def binarise(mask: torch.Tensor) -> torch.Tensor:
    """Return a new mask of the same shape and dtype, which is 1 where `mask` >= 0.5, else 0."""
    return (mask >= 0.5).to(mask.dtype)


def bordered(garment: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return a garment picture in the shape of `size`. One of another shape gets a border, and is not stretched.

    A picture that has the shape, by `window.has_shape`, is returned as it is. Others are resized to fit into `size`.
    The border has the median colour of the outermost pixels.
    """
    width, height = garment.size
    if has_shape((height, width), size):
        return garment
    edges = [(0, 0, width, 1), (0, height - 1, width, height), (0, 0, 1, height), (width - 1, 0, width, height)]
    outermost = np.concatenate([np.asarray(garment.crop(edge)).reshape(-1, 3) for edge in edges])
    red, green, blue = (int(level) for level in np.median(outermost, axis=0))
    scale = min(size[0] / height, size[1] / width)
    fitted = garment.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BICUBIC)
    picture = Image.new("RGB", (size[1], size[0]), (red, green, blue))
    picture.paste(fitted, ((size[1] - fitted.width) // 2, (size[0] - fitted.height) // 2))
    return picture


def vision_crop(garment: Image.Image, picture_size: tuple[int, int], crop: int) -> NDArray[np.uint8]:
    """Return the part of a garment picture that the vision encoder sees, uint8 [crop, crop, 3].

    The picture, with a border if it has another shape, is resized to `picture_size`, then until its short side is
    `crop`, and cut to the centre. So the top and bottom of a tall garment are cut off, as in the published evaluation.
    """
    import torch

    garment = bordered(garment, picture_size)
    # As in the published evaluation, pictures go through float32 and are truncated, not rounded, to bytes.
    truncated = ((to_tensor(garment, picture_size) + 1) / 2 * 255).to(torch.uint8)
    height, width = (int(crop * side / min(picture_size)) for side in picture_size)
    image = Image.fromarray(truncated.permute(1, 2, 0).contiguous().numpy())
    resized = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - crop) // 2, (width - crop) // 2
    return resized[top : top + crop, left : left + crop]


def vision_pixels(
    garment: Image.Image, picture_size: tuple[int, int], crop: int, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """Return the vision encoder's input for an RGB garment picture, float32 [3, crop, crop].

    It is `vision_crop`, normalised by `mean` and `std`, which are for RGB in [0, 1].
    """
    import torch

    levels = torch.from_numpy(vision_crop(garment, picture_size, crop)).permute(2, 0, 1).contiguous().float()
    return (levels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


class OpenedPhoto(NamedTuple):
    """An uploaded photo in its own size and colours.

    pixels: uint8 [H, W, 3], upright. icc_profile: the RGB profile of its colours; None = sRGB.
    hole: the transparent part as a mask, uint8 [H, W], 1 = transparent. None if no part is transparent, or if the
    transparent part has most of the photo's edge: then the photo is a cut-out, and its background is transparent.
    """

    pixels: NDArray[np.uint8]
    hole: NDArray[np.uint8] | None
    icc_profile: bytes | None


def open_photo(data: bytes | Path, *, field: str = "image", max_pixels: int = MAX_PIXELS) -> OpenedPhoto:
    """Return the uploaded photo in the colours of its own profile. Transparent parts become white.

    A photo is converted to sRGB if its profile is not RGB, or if colours cannot be converted back to it. Raises
    InvalidRequest as `open_image` does.
    """
    image, icc_profile = _decode(data, field, max_pixels)
    hole = None
    if image.mode == "RGBA":
        transparent = np.asarray(image.getchannel("A")) < 128
        if transparent.all():
            raise InvalidRequest(field, "a picture that is transparent everywhere", "must show something")
        if transparent.any() and edge_share(transparent) < CANVAS:
            hole = transparent.astype(np.uint8)
    return OpenedPhoto(np.asarray(_on_white(image)), hole, icc_profile)


def open_image(data: bytes | Path, *, field: str = "image", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the uploaded picture as 8-bit sRGB, turned upright as its EXIF data say. Transparent parts become white.

    Of an animation the first frame is taken. Raises InvalidRequest, naming `field`, unless the data are a whole picture
    in one of FORMATS, with at most `max_pixels` and sides of at least MIN_SIDE. Sizes are checked before decoding.
    """
    image, icc_profile = _decode(data, field, max_pixels)
    return to_srgb(_on_white(image), icc_profile)


def open_mask(data: bytes | Path, *, field: str = "mask", max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Return the uploaded mask as uint8 [H, W], 1 = repaint. It is judged at its own size, which is to be the photo's.

    The part to repaint is white or transparent; `uploaded_mask` has the rules. Raises InvalidRequest as `open_image`
    does, and for a mask that marks nothing, is unclear, or is a picture in many levels of grey.
    """
    image, _ = _decode(data, field, max_pixels, has_colours=False)
    return marked(image, field)


def paste_outside(
    original: NDArray[np.uint8], mask: NDArray[np.uint8], picture: NDArray[np.uint8], feather_px: int
) -> NDArray[np.uint8]:
    """Return the edited photo, uint8 [H, W, 3]: `picture` where `mask` is set, else `original` pixel for pixel.

    original: [H, W, 3]. mask: [H, W], nonzero = repainted. picture: [h, w, 3], resized to the original's size.
    feather_px: the width of the band, all inside the mask, in which the original fades into the picture.
    """
    height, width = mask.shape
    edited = original.copy()
    if not mask.any():
        return edited
    # Only the box around the mask is worked on, as most of a large photo lies outside.
    rows, columns = _extent(mask, across=1), _extent(mask, across=0)
    if picture.shape != original.shape:
        resized = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
        box = (columns.start, rows.start, min(columns.stop, width), min(rows.stop, height))
        picture = np.asarray(resized.crop(box))
    else:
        picture = picture[rows, columns]
    depth = _depth(mask[rows, columns] != 0, feather_px + 1)
    target = edited[rows, columns]
    np.copyto(target, picture, where=(depth > feather_px)[..., None])
    seam = (depth > 0) & (depth <= feather_px)
    weight = (depth[seam].astype(np.float32) / np.float32(feather_px + 1))[:, None]
    target[seam] = (weight * picture[seam] + (1 - weight) * target[seam]).round()
    return edited


def _extent(mask: NDArray[np.uint8], *, across: int) -> slice:
    """Return the rows (across=1) or columns (across=0) of the box around all that is set in [H, W], plus one each side.

    With this margin, pixels at the edge of the mask are not at the edge of the box, unless the picture ends there.
    """
    indices = np.flatnonzero(mask.any(axis=across))
    return slice(max(0, int(indices[0]) - 1), int(indices[-1]) + 2)


def _depth(inside: NDArray[np.bool_], max_depth: int) -> NDArray[np.uint16]:
    """Return how deep each pixel [H, W] lies inside: 0 outside, 1 at the edge, and at most `max_depth`."""
    depth = inside.astype(np.uint16)
    for _ in range(max_depth - 1):
        inside = _erode(inside)
        depth += inside
    return depth


def _erode(area: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the area without its outermost pixels. Where the area ends with the picture, it keeps its pixels."""
    rows = area.copy()
    rows[1:] &= area[:-1]
    rows[:-1] &= area[1:]
    eroded = rows.copy()
    eroded[:, 1:] &= rows[:, :-1]
    eroded[:, :-1] &= rows[:, 1:]
    return eroded


def _decode(
    data: bytes | Path, field: str, max_pixels: int, has_colours: bool = True
) -> tuple[Image.Image, bytes | None]:
    """Return the picture, upright, in mode RGB or, with transparency, RGBA, and its profile; None = sRGB.

    has_colours: whether the profile in the file is used. It is not for masks, whose levels are no colours.
    """
    shown = f"{len(data)} bytes" if isinstance(data, bytes) else str(data)
    source = io.BytesIO(data) if isinstance(data, bytes) else data
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(source, formats=FORMATS) as image:
                _check_size(image.size, field, max_pixels)
                # In place, because a copy of a large photo takes much memory.
                ImageOps.exif_transpose(image, in_place=True)
                return _eight_bit(image, image.info.get("icc_profile") if has_colours else None)
        except Image.DecompressionBombError as error:
            raise InvalidRequest(field, shown, f"must have at most {max_pixels} pixels") from error
        except (OSError, SyntaxError, TypeError, ValueError, struct.error) as error:  # all raised by Pillow
            rule = f"must be a whole picture of 8 or 16 bits a channel, in one of {', '.join(FORMATS)}"
            raise InvalidRequest(field, shown, rule) from error


def _on_white(image: Image.Image) -> Image.Image:
    """Return the picture in mode RGB, with white where it is transparent."""
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    return image


def _check_size(size: tuple[int, int], field: str, max_pixels: int) -> None:
    """Raise InvalidRequest for a picture of too many pixels or too short a side."""
    width, height = size
    if width * height > max_pixels:
        raise InvalidRequest(field, f"{width}x{height} pixels", f"must have at most {max_pixels} pixels")
    if min(size) < MIN_SIDE:
        raise InvalidRequest(field, f"{width}x{height} pixels", f"each side must have at least {MIN_SIDE} pixels")


def _eight_bit(image: Image.Image, icc_profile: bytes | None) -> tuple[Image.Image, bytes | None]:
    """Return the picture in mode RGB or RGBA, and the profile of its colours; None = sRGB.

    Colours of a profile that is not RGB, or that leads to sRGB but not back, are converted to sRGB.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode == "CMYK":
        return to_srgb(image, icc_profile), None
    is_grey = image.mode.startswith(("1", "I", "L")) and image.mode != "LAB"
    if image.mode.startswith("I"):
        # Pillow's own conversion of 16-bit grey clips it instead of scaling it.
        levels = np.asarray(image).astype(np.float32) / 257
        image = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if icc_profile is None or (not is_grey and is_two_way(icc_profile)):
        return image, icc_profile
    srgb = to_srgb(image.getchannel("R") if is_grey else image.convert("RGB"), icc_profile)
    if image.mode == "RGBA":
        srgb.putalpha(image.getchannel("A"))
    return srgb, None
