import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from fashion_rag.data.image import (
    binarise,
    bordered,
    open_image,
    open_mask,
    open_photo,
    paste_outside,
    to_tensor,
    to_uint8,
    vision_crop,
    vision_pixels,
)
from fashion_rag.data.window import box_of, has_shape
from fashion_rag.errors import InvalidRequest
from tests.golden.golden import named, strided
from tests.profiles import display_p3, linear_grey, one_way_rgb, press

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(height=24, width=20, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def quadrants(width=40, height=20):
    """Return a picture that is red in the upper left and black elsewhere."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (255, 0, 0)
    return Image.fromarray(pixels)


def png_header_only(width, height):
    """Return a PNG that claims a size and holds no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1000) + b"IDAT"


# Golden


def test_garment_crops_equal_the_published_ones(golden):
    for garment, reference in zip(golden.garments(), golden.crops(), strict=False):
        np.testing.assert_array_equal(vision_crop(garment, golden.picture_size, golden.crop), reference)


def test_vision_pixels_equal_the_published_ones(golden):
    expected, kept = strided(golden.tensors("case7_vision"), "pixel_values")
    for garment, reference in zip(golden.garments(), expected, strict=True):
        pixels = vision_pixels(garment, golden.picture_size, golden.crop, CLIP_MEAN, CLIP_STD)
        assert pixels.is_contiguous()
        torch.testing.assert_close(pixels[:, kept, kept], reference, atol=1e-6, rtol=0)


def test_pictures_equal_the_published_tensors(golden):
    retrieved = {(entry["category"], entry["im_name"]): entry["retrieved"] for entry in golden.samples}
    tensors = golden.tensors("case6_dataprep")
    for name, parts in named(tensors, r"(image|retrieved_cloth)\.(\d+)x(\d+)\.(\w+)\.(\w+)").items():
        kind, height, width, category, person_id = parts
        if kind == "image":
            path, reference = f"{category}/images/{person_id}_0.jpg", tensors[name]
        else:
            path, reference = retrieved[category, f"{person_id}_0.jpg"][0], tensors[name][0]
        picture = to_tensor(Image.open(golden.dresscode / path).convert("RGB"), (int(height), int(width)))
        # A level is 8e-3 here; only the last digit of a division differs.
        torch.testing.assert_close(picture, reference, atol=1e-6, rtol=0)


# Tensors


def test_to_tensor_does_not_keep_the_aspect_and_is_contiguous():
    picture = to_tensor(Image.new("RGB", (100, 30), (255, 0, 51)), (16, 24))
    assert picture.shape == (3, 16, 24) and picture.dtype == torch.float32 and picture.is_contiguous()
    torch.testing.assert_close(picture[:, 0, 0], torch.tensor([1.0, -1.0, -0.6]))


@given(hnp.arrays(np.uint8, (16, 16, 3)))
def test_every_byte_survives_the_way_to_a_tensor_and_back(pixels):
    np.testing.assert_array_equal(to_uint8(to_tensor(Image.fromarray(pixels), (16, 16))), pixels)


def test_to_uint8_rounds_clamps_and_keeps_a_batch():
    picture = torch.tensor([-1.2, -1 + 2 * 0.4 / 255, -1 + 2 * 0.6 / 255, 1.3])
    levels = to_uint8(picture[None, None, None, :].expand(2, 3, 1, 4))
    assert levels.shape == (2, 1, 4, 3) and levels.dtype == np.uint8
    assert levels[1, 0, :, 2].tolist() == [0, 0, 1, 255]


def test_binarise_counts_one_half_as_set_and_leaves_its_argument():
    mask = torch.tensor([0.0, 0.49, 0.5, 1.0])
    before = mask.clone()
    assert binarise(mask).tolist() == [0, 0, 1, 1]
    assert torch.equal(mask, before)


def test_a_garment_picture_of_the_models_shape_gets_no_border():
    for width, height in ((384, 512), (48, 64), (757, 1000)):
        garment = Image.fromarray(noise(height, width))
        assert bordered(garment, (512, 384)) is garment


@given(st.integers(16, 120), st.integers(16, 120))
def test_a_garment_picture_of_another_shape_keeps_its_shape(height, width):
    garment = Image.new("RGB", (width, height), (200, 210, 220))
    garment.paste("red", (1, 1, width - 1, height - 1))
    picture = np.asarray(bordered(garment, (64, 48))).astype(int)
    if has_shape((height, width), (64, 48)):
        return
    assert picture.shape == (64, 48, 3)
    red = (picture[..., 1] < 105) & (picture[..., 0] > 200)
    top, left, bottom, right = box_of(red)
    scale = min(64 / height, 48 / width)
    assert abs((bottom - top) - scale * (height - 2)) <= 2 and abs((right - left) - scale * (width - 2)) <= 2
    assert abs((top + bottom) - 64) <= 2 and abs((left + right) - 48) <= 2
    above, beside = (64 - round(height * scale)) // 2, (48 - round(width * scale)) // 2
    assert (picture[:above] == (200, 210, 220)).all() and (picture[:, :beside] == (200, 210, 220)).all()


def test_a_border_has_the_commonest_colour_of_the_edge():
    garment = np.full((40, 40, 3), (250, 248, 246), np.uint8)
    garment[:, 15:25] = (10, 20, 30)  # a garment that reaches from edge to edge
    picture = np.asarray(bordered(Image.fromarray(garment), (64, 48)))
    assert (picture[:8] == (250, 248, 246)).all() and (picture[-8:] == (250, 248, 246)).all()


def test_the_vision_encoder_sees_a_square_garment_with_its_border():
    square = np.full((300, 300, 3), 255, np.uint8)
    square[100:200, 100:200] = 0
    seen = vision_crop(Image.fromarray(square), (512, 384), 224)
    top, left, bottom, right = box_of(seen.max(axis=2) < 128)
    assert abs((bottom - top) - (right - left)) <= 1
    # In a picture of the model's width, 224 columns are all of it.
    assert abs((right - left) - 224 / 3) <= 2


def test_a_huge_garment_picture_gets_its_border_at_the_models_size():
    assert bordered(Image.new("RGB", (60_000, 20)), (64, 48)).size == (48, 64)


def test_vision_crop_cuts_top_and_bottom_of_a_tall_garment():
    garment = np.full((512, 384, 3), 255, np.uint8)
    garment[:60] = garment[-60:] = 0
    assert vision_crop(Image.fromarray(garment), (512, 384), 224).min() == 255


# Uploads: pictures


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_come_back_exactly(format):
    image = open_image(encoded(Image.fromarray(noise()), format))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), noise())


@pytest.mark.parametrize("orientation, corner", [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_exif_orientation_is_applied(orientation, corner):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = open_image(encoded(quadrants(), "JPEG", exif=exif, quality=95))
    assert image.size == ((40, 20) if orientation in (1, 3) else (20, 40))
    assert np.asarray(image)[corner][0] > 200


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_eight_bit_rgb(mode):
    white_and_black = np.zeros((20, 20), np.uint8)
    white_and_black[:10] = 255
    if mode == "I;16":
        image = Image.fromarray(white_and_black.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(white_and_black).convert("RGB").convert(mode)
    assert image.mode == mode
    decoded = open_image(encoded(image, "TIFF" if mode == "CMYK" else "PNG"))
    assert decoded.mode == "RGB"
    pixels = np.asarray(decoded)
    assert (pixels[:9] == 255).all() and (pixels[11:] == 0).all()


def test_cmyk_jpeg_is_not_inverted():
    pixels = np.asarray(open_image(encoded(Image.new("RGB", (32, 32), (250, 10, 10)).convert("CMYK"), "JPEG")))
    assert pixels[..., 0].min() > 230 and pixels[..., 1:].max() < 30


def test_sixteen_bit_grey_is_scaled_not_clipped():
    image = Image.fromarray(np.full((16, 16), 128 * 257, np.uint16))
    assert set(np.unique(np.asarray(open_image(encoded(image))))) == {128}


def test_transparency_is_laid_on_white():
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:8, :, 3] = 255
    decoded = np.asarray(open_image(encoded(Image.fromarray(pixels))))
    assert (decoded[:8] == 0).all() and (decoded[8:] == 255).all()


def test_transparent_palette_colour_is_laid_on_white():
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.paste(0, (0, 0, 16, 8))
    decoded = np.asarray(open_image(encoded(image, transparency=b"\x00\xff")))
    assert (decoded[:8] == 255).all() and (decoded[8:] == (10, 20, 30)).all()


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    decoded = open_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert decoded.getpixel((3, 3)) == (255, 0, 0)


def test_a_path_is_read(tmp_path):
    quadrants().save(tmp_path / "photo.png")
    assert open_image(tmp_path / "photo.png").size == (40, 20)
    with pytest.raises(InvalidRequest, match=r"image: got .*missing\.png"):
        open_image(tmp_path / "missing.png")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_a_truncated_file_is_refused(format):
    whole = encoded(Image.fromarray(noise(64, 64)), format)
    for part in (0.1, 0.5, 0.8):
        with pytest.raises(InvalidRequest, match=r"photo: got .*whole picture"):
            open_image(whole[: int(len(whole) * part)], field="photo")


@pytest.mark.parametrize("data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", b"<svg/>"])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(InvalidRequest, match=r"image: got .*must be a whole picture"):
        open_image(data)


def test_float_pixels_are_refused():
    with pytest.raises(InvalidRequest, match="8 or 16 bits"):
        open_image(encoded(Image.new("F", (20, 20)), "TIFF"))


def test_size_limits_hold_before_anything_is_decoded():
    # No pixels follow the header, so a decoder would complain about a truncated file instead.
    with pytest.raises(InvalidRequest, match="at most 64000000 pixels"):
        open_image(png_header_only(8001, 8000))
    with pytest.raises(InvalidRequest, match="at most 64000000 pixels"):
        open_image(png_header_only(60_000, 60_000))
    with pytest.raises(InvalidRequest, match=r"101x100 pixels.*at most 10000 pixels"):
        open_image(png_header_only(101, 100), max_pixels=10_000)
    with pytest.raises(InvalidRequest, match=r"15x90 pixels.*at least 16 pixels"):
        open_image(png_header_only(15, 90))
    with pytest.raises(InvalidRequest, match="whole picture"):
        open_image(png_header_only(100, 100), max_pixels=10_000)


def test_pillow_warns_nobody():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(InvalidRequest, match="whole picture"):
            open_image(png_header_only(12_000, 12_000), max_pixels=150_000_000)  # over Pillow's own warning limit
    assert not caught


def test_threads_leave_the_warning_filters_as_they_were():
    data = [encoded(Image.fromarray(noise(side, side))) for side in (100, 200, 300, 400)]
    before = list(warnings.filters)
    threads = [threading.Thread(target=open_image, args=(photo,)) for photo in data * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


@settings(max_examples=150)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]), st.data())
def test_damaged_files_are_opened_or_refused(format, data):
    damaged = bytearray(encoded(Image.fromarray(noise()), format))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert open_image(bytes(damaged), max_pixels=10_000).mode == "RGB"
    except InvalidRequest as error:
        assert str(error).startswith("image: got ")


# Uploads: colours


# TIFF holds any mode and any profile. Every other format has its own place for a profile.
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_photo_keeps_its_pixels_and_its_profile(format, mode):
    if (format, mode) in (("JPEG", "RGBA"), ("JPEG", "P"), ("WEBP", "P")):
        pytest.skip("the format has no such mode")
    image = Image.fromarray(noise()).convert(mode)
    options = {"lossless": True} if format == "WEBP" else {}
    photo = open_photo(encoded(image, format, icc_profile=display_p3(), **options))
    assert photo.icc_profile == display_p3() and photo.hole is None
    if format != "JPEG":
        np.testing.assert_array_equal(photo.pixels, np.asarray(image.convert("RGB")))


def test_a_garment_picture_is_converted_to_srgb():
    image = open_image(encoded(Image.new("RGB", (20, 20), (200, 100, 50)), icc_profile=display_p3()))
    # What the matrix and the curve of the two spaces give.
    assert np.abs(np.array(image.getpixel((3, 3))) - (215, 93, 31)).max() <= 1
    assert "icc_profile" not in image.info


def test_a_grey_photo_is_converted_to_srgb_by_its_profile():
    # A fifth of the light is 124 in sRGB.
    for mode in ("L", "LA"):
        data = encoded(Image.new("L", (20, 20), 51).convert(mode), icc_profile=linear_grey())
        photo = open_photo(data)
        assert photo.icc_profile is None
        assert np.abs(photo.pixels.astype(int) - 124).max() <= 1
        np.testing.assert_array_equal(photo.pixels, np.asarray(open_image(data)))


def test_a_sixteen_bit_grey_photo_is_converted_too():
    photo = open_photo(encoded(Image.fromarray(np.full((16, 16), 51 * 257, np.uint16)), icc_profile=linear_grey()))
    assert photo.icc_profile is None and np.abs(photo.pixels.astype(int) - 124).max() <= 1


def test_a_cmyk_photo_is_converted_to_srgb_by_its_profile():
    inks = Image.merge("CMYK", [Image.new("L", (32, 32), level) for level in (0, 255, 255, 0)])
    photo = open_photo(encoded(inks, "JPEG", icc_profile=press()))
    assert photo.icc_profile is None
    assert photo.pixels.max() < 10  # on this press; in general, it would be red
    assert open_photo(encoded(inks, "JPEG", icc_profile=b"damaged")).pixels[..., 0].min() > 230


def test_a_photo_whose_profile_has_no_way_back_is_converted_to_srgb():
    photo = open_photo(encoded(Image.new("RGBA", (20, 20), (250, 0, 0, 255)), icc_profile=one_way_rgb()))
    assert photo.icc_profile is None and photo.hole is None
    assert np.ptp(photo.pixels.astype(int), axis=-1).max() <= 1


@pytest.mark.parametrize("profile", [b"damaged", display_p3()[:200], linear_grey(), press()])
def test_a_profile_that_does_not_fit_counts_as_none(profile):
    data = encoded(Image.fromarray(noise()), "TIFF", icc_profile=profile)
    photo = open_photo(data)
    assert photo.icc_profile is None
    np.testing.assert_array_equal(photo.pixels, noise())
    np.testing.assert_array_equal(np.asarray(open_image(data)), noise())


def test_a_turned_photo_keeps_its_profile():
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = open_photo(encoded(quadrants(), "JPEG", exif=exif, quality=95, icc_profile=display_p3()))
    assert photo.icc_profile == display_p3()
    assert photo.pixels.shape == (40, 20, 3) and photo.pixels[0, -1, 0] > 200


def test_a_photo_has_a_hole_where_it_is_transparent():
    pixels = noise(channels=4)
    photo = open_photo(encoded(Image.fromarray(pixels), icc_profile=display_p3()))
    np.testing.assert_array_equal(photo.hole, pixels[..., 3] < 128)
    assert (photo.pixels[pixels[..., 3] == 0] == 255).all()
    pixels[..., 3] = 128
    assert open_photo(encoded(Image.fromarray(pixels))).hole is None


def test_a_cut_out_photo_has_no_hole():
    pixels = noise(40, 30, channels=4)
    pixels[..., 3] = 0
    pixels[5:38, 8:20, 3] = 255
    photo = open_photo(encoded(Image.fromarray(pixels)))
    assert photo.hole is None
    assert (photo.pixels[pixels[..., 3] == 0] == 255).all()
    # A hole may reach the edge, as long as most of the edge is the photo's.
    pixels[..., 3] = 255
    pixels[5:38, :20, 3] = 0
    hole = open_photo(encoded(Image.fromarray(pixels))).hole
    assert hole is not None and hole.sum() == 33 * 20


def test_a_photo_that_is_transparent_everywhere_is_refused():
    pixels = noise(channels=4)
    pixels[..., 3] = 100
    with pytest.raises(InvalidRequest, match="image: got 'a picture that is transparent everywhere'"):
        open_photo(encoded(Image.fromarray(pixels)))


# Uploads: masks


def test_a_mask_is_read_without_a_look_at_its_profile():
    drawn = np.full((20, 30), 100, np.uint8)
    drawn[5:10, 3:7] = 200
    np.testing.assert_array_equal(open_mask(encoded(Image.fromarray(drawn), icc_profile=linear_grey())), drawn == 200)


def test_a_mask_that_marks_nothing_is_refused():
    with pytest.raises(InvalidRequest, match="selection: got 'nothing marked'"):
        open_mask(encoded(Image.new("L", (20, 20))), field="selection")


# Pasting back


def pasted_in_full(original, mask, picture, feather_px):
    """Return the photo with every pixel blended; weights rise by one share a pixel from the mask's edge inwards."""
    padded, depth = np.pad(mask != 0, 1, mode="edge"), np.zeros(mask.shape, np.float32)
    for _ in range(feather_px + 1):
        inside = padded[1:-1, 1:-1]
        depth += inside
        height, width = inside.shape
        windows = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
        padded = np.pad(np.logical_and.reduce(windows), 1, mode="edge")
    weight = (depth / np.float32(feather_px + 1))[..., None]
    return (weight * picture + (1 - weight) * original).round().astype(np.uint8)


@given(hnp.arrays(np.uint8, (14, 11), elements=st.integers(0, 1), fill=st.just(1)), st.integers(0, 4))
def test_pasting_blends_as_if_every_pixel_were_weighed(mask, feather_px):
    original, picture = noise(14, 11, seed=1), noise(14, 11, seed=2)
    expected = pasted_in_full(original, mask, picture, feather_px)
    np.testing.assert_array_equal(paste_outside(original, mask, picture, feather_px), expected)


@given(
    hnp.arrays(np.uint8, (12, 9), elements=st.integers(0, 1)),
    st.integers(0, 5),
    st.sampled_from([(12, 9), (24, 18), (5, 7)]),
)
def test_outside_the_mask_nothing_changes(mask, feather_px, picture_size):
    original, picture = noise(12, 9, seed=1), noise(*picture_size, seed=2)
    before = original.copy()
    edited = paste_outside(original, mask, picture, feather_px)
    assert edited.shape == original.shape and edited.dtype == np.uint8
    np.testing.assert_array_equal(edited[mask == 0], original[mask == 0])
    np.testing.assert_array_equal(original, before)


@given(hnp.arrays(np.uint8, (12, 9), elements=st.integers(0, 1)))
def test_without_feather_the_inside_is_the_picture(mask):
    original, picture = noise(12, 9, seed=1), noise(12, 9, seed=2)
    edited = paste_outside(original, mask, picture, 0)
    np.testing.assert_array_equal(edited[mask == 1], picture[mask == 1])


def test_the_feather_is_a_line_inside_the_mask_and_skips_the_border():
    mask = np.zeros((8, 10), np.uint8)
    mask[:, 3:] = 1
    edited = paste_outside(np.zeros((8, 10, 3), np.uint8), mask, np.full((8, 10, 3), 200, np.uint8), 3)
    assert (edited == edited[:1, :, :1]).all()
    assert edited[0, :, 0].tolist() == [0, 0, 0, 50, 100, 150, 200, 200, 200, 200]


def test_a_small_picture_is_enlarged_to_the_original():
    mask = np.ones((40, 30), np.uint8)
    edited = paste_outside(np.zeros((40, 30, 3), np.uint8), mask, np.full((8, 6, 3), 77, np.uint8), 0)
    assert (edited == 77).all()


@pytest.mark.parametrize("corner", [(0, 0), (5, 9), (23, 17)])
def test_what_lies_far_from_the_mask_makes_no_difference(corner: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    large, picture = rng.integers(0, 256, (2, 60, 50, 3), dtype=np.uint8)
    mask = np.zeros((60, 50), np.uint8)
    top, left = corner
    mask[top : top + 20, left : left + 15] = 1
    pasted = paste_outside(large, mask, picture, feather_px=3)
    # With a margin of two pixels, or up to the border of the picture.
    area = slice(max(0, top - 2), top + 22), slice(max(0, left - 2), left + 17)
    assert np.array_equal(pasted[area], paste_outside(large[area], mask[area], picture[area], feather_px=3))
    assert np.array_equal(pasted[mask == 0], large[mask == 0])
