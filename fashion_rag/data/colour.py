"""The conversion of colours between sRGB, which the models know, and the ICC profile of an uploaded picture.

`image.py` converts the pictures that it opens. The pipeline converts the photo before it is edited, and the edited part
before it is pasted back. A profile that is damaged, or of another colour space than the picture, is ignored, and the
picture is taken for sRGB.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

# The usual choice for photos: colours that both profiles can show stay the same, and black stays black.
INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION


def to_srgb(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    """Return the picture in sRGB, in mode RGB and without a profile; an RGB picture is changed in place.

    image: in mode RGB, L or CMYK, in the colours of `icc_profile`. Without a profile, Pillow's own conversion is used.
    """
    transform = _transform(icc_profile, image.mode, to_srgb=True)
    if transform is not None and image.mode == "RGB":
        ImageCms.applyTransform(image, transform, inPlace=True)
    elif transform is not None:
        image = ImageCms.applyTransform(image, transform) or image
    elif image.mode != "RGB":
        image = image.convert("RGB")
    image.info.pop("icc_profile", None)
    return image


def from_srgb(pixels: NDArray[np.uint8], icc_profile: bytes | None) -> NDArray[np.uint8]:
    """Return sRGB pixels, uint8 [H, W, 3], in the colours of an RGB profile."""
    transform = _transform(icc_profile, "RGB", to_srgb=False)
    if transform is None:
        return pixels
    image = Image.fromarray(pixels)
    ImageCms.applyTransform(image, transform, inPlace=True)
    return np.asarray(image)


def is_two_way(icc_profile: bytes | None) -> bool:
    """Return whether RGB colours can be converted from this profile to sRGB and back again."""
    return all(_transform(icc_profile, "RGB", to_srgb=to_srgb) is not None for to_srgb in (True, False))


def _transform(icc_profile: bytes | None, mode: str, *, to_srgb: bool) -> ImageCms.ImageCmsTransform | None:
    """Return the conversion of pictures in this mode between the profile and sRGB, or None where there can be none."""
    if icc_profile is None:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        source, target = (profile, srgb) if to_srgb else (srgb, profile)
        return ImageCms.buildTransform(source, target, mode, "RGB", INTENT, FLAGS)
    except (OSError, ImageCms.PyCMSError):
        return None
