import numpy as np
import pytest
from PIL import Image

from fashion_rag.data.pose import KEYPOINT_FRAME
from fashion_rag.data.window import whole
from fashion_rag.person.labels import CLASSES
from fashion_rag.person.parser import HumanParser
from fashion_rag.person.pixels import InputPicture
from fashion_rag.person.pose_estimator import PoseEstimator
from fashion_rag.person.reading import PhotoReading, larger_person, read_photos
from tests.person import toy

SHAPE = (64, 48)
HEAD, SHIRT, TROUSERS = (CLASSES.index(name) for name in ("head", "upper_clothes", "pants"))


@pytest.fixture
def parser() -> HumanParser:
    """Return a parser that knows a class by its colour."""
    return HumanParser(toy.ColourParser(), InputPicture((128, 96), toy.MEAN, toy.STD), tuple(range(18)))


@pytest.fixture
def pose_estimator() -> PoseEstimator:
    """Return a pose estimator whose joints are all at the middle of the head."""
    return PoseEstimator(toy.ColourPose(), InputPicture(toy.POSE_SIZE, toy.MEAN, toy.STD))


def wall(height: int, width: int) -> Image.Image:
    return Image.new("RGB", (width, height), toy.COLOURS["background"])


def put_person(photo: Image.Image, top: int, left: int, height: int) -> None:
    """Put a person of a red head, a yellow shirt and pink trousers into the photo, a third as wide as it is high."""
    width = height // 3
    photo.paste(toy.COLOURS["head"], (left + width // 3, top, left + 2 * width // 3, top + height // 5))
    photo.paste(toy.COLOURS["upper_clothes"], (left, top + height // 5, left + width, top + height // 2))
    photo.paste(toy.COLOURS["pants"], (left + width // 6, top + height // 2, left + 5 * width // 6, top + height))


def num_calls(parser: HumanParser) -> list[int]:
    assert isinstance(parser.network, toy.ColourParser)
    return parser.network.num_pictures


def read(parser: HumanParser, photo: Image.Image, estimator: PoseEstimator | None = None) -> PhotoReading:
    (reading,) = read_photos(parser, estimator, [photo], SHAPE)
    return reading


def photo_box(reading: PhotoReading) -> tuple[float, ...]:
    """Return the box of the person in the label map as (top, left, bottom, right) in pixels of the photo."""
    rows, columns = np.nonzero(reading.label_map)
    window = reading.window
    y, x = window.height / KEYPOINT_FRAME[0], window.width / KEYPOINT_FRAME[1]
    return (
        window.top + rows.min() * y,
        window.left + columns.min() * x,
        window.top + (rows.max() + 1) * y,
        window.left + (columns.max() + 1) * x,
    )


def test_a_person_who_fills_a_photo_of_the_model_s_shape_is_looked_at_once(parser: HumanParser) -> None:
    photo = wall(640, 480)
    put_person(photo, 20, 150, 600)
    reading = read(parser, photo)
    assert reading.window == whole((640, 480))
    assert num_calls(parser) == [1]
    assert reading.num_persons == 1 and reading.keypoints is None
    assert reading.label_map.shape == KEYPOINT_FRAME and reading.label_map.dtype == np.uint8
    assert set(np.unique(reading.label_map)) == {0, HEAD, SHIRT, TROUSERS}
    # The frame has four fifths of the photo's pixels in each direction; edges may be off by a pixel of the logits.
    assert reading.label_map[60, 200] == HEAD
    assert reading.label_map[200, 200] == SHIRT
    assert reading.label_map[400, 200] == TROUSERS
    assert photo_box(reading) == pytest.approx((20, 150, 620, 350), abs=15)


@pytest.mark.parametrize("size", [(480, 640), (600, 600), (900, 300)])
def test_a_small_person_is_looked_at_again_in_a_window(parser: HumanParser, size: tuple[int, int]) -> None:
    photo = wall(*size)
    put_person(photo, 100, 60, 300)
    reading = read(parser, photo)
    assert num_calls(parser) == [1, 1]
    assert reading.window != whole(size)
    assert reading.window.width / reading.window.height == pytest.approx(0.75, abs=0.01)
    # The second look is nearer than the first: a pixel of its logits is about 8 pixels of the photo.
    assert photo_box(reading) == pytest.approx((100, 60, 400, 160), abs=8)
    assert reading.num_persons == 1


def test_beyond_its_edges_the_photo_is_continued(parser: HumanParser) -> None:
    # The photo shows nothing but trousers.
    photo = Image.new("RGB", (400, 100), toy.COLOURS["pants"])
    reading = read(parser, photo)
    assert reading.window.height > 100
    assert (reading.label_map == TROUSERS).all()


def test_the_larger_of_two_persons_is_read(parser: HumanParser, pose_estimator: PoseEstimator) -> None:
    photo = wall(480, 640)
    put_person(photo, 60, 360, 400)
    put_person(photo, 100, 180, 300)
    alone = wall(480, 640)
    put_person(alone, 60, 360, 400)
    both, one = (read(parser, picture, pose_estimator) for picture in (photo, alone))
    assert (both.num_persons, one.num_persons) == (2, 1)
    assert both.window == one.window
    # The smaller person is in the window as well, but not in the label map.
    assert both.window.left < 280
    assert np.array_equal(both.label_map, one.label_map)
    assert both.keypoints is not None
    # At the edge of what the pose estimator sees, there is some of the other head, at (230, 130).
    np.testing.assert_allclose(both.keypoints[0], (360 + 400 / 6, 100), atol=40)


def test_nobody_is_seen_on_an_empty_wall(parser: HumanParser, pose_estimator: PoseEstimator) -> None:
    reading = read(parser, wall(480, 640), pose_estimator)
    assert reading.num_persons == 0
    assert not reading.label_map.any()
    assert reading.keypoints is not None and not reading.keypoints.any()
    assert num_calls(parser) == [1]
    assert reading.window.width / reading.window.height == pytest.approx(0.75, abs=0.01)


def test_points_are_in_pixels_of_the_photo(parser: HumanParser, pose_estimator: PoseEstimator) -> None:
    photo = wall(960, 1280)
    put_person(photo, 300, 900, 480)
    reading = read(parser, photo, pose_estimator)
    assert reading.keypoints is not None
    # Every joint is in the middle of the head, the neck between the shoulders, too.
    np.testing.assert_allclose(reading.keypoints, np.full((18, 2), (980, 348)), atol=15)


def test_readings_do_not_depend_on_the_photos_beside_them(parser: HumanParser, pose_estimator: PoseEstimator) -> None:
    photos = [wall(480, 640), wall(640, 480), wall(300, 300)]
    put_person(photos[0], 60, 360, 300)
    put_person(photos[1], 20, 150, 600)
    together = read_photos(parser, pose_estimator, photos, SHAPE)
    # The first look is at all photos at once, and the second at the only one with a person in a part of it.
    assert num_calls(parser) == [3, 1]
    assert [reading.num_persons for reading in together] == [1, 1, 0]
    for photo, reading in zip(photos, together, strict=True):
        alone = read(parser, photo, pose_estimator)
        assert alone.window == reading.window and alone.num_persons == reading.num_persons
        assert np.array_equal(alone.label_map, reading.label_map)
        assert alone.keypoints is not None and reading.keypoints is not None
        np.testing.assert_allclose(alone.keypoints, reading.keypoints, rtol=0, atol=1e-3)


def test_no_photos_have_no_readings(parser: HumanParser) -> None:
    assert read_photos(parser, None, [], SHAPE) == []


def test_a_large_photo_is_read_as_its_reduction_is(parser: HumanParser, pose_estimator: PoseEstimator) -> None:
    small = wall(480, 640)
    put_person(small, 60, 360, 300)
    large = small.resize((3200, 2400), Image.Resampling.NEAREST)
    far, near = read(parser, large, pose_estimator), read(parser, small, pose_estimator)
    assert np.array(far.window) == pytest.approx(np.array(near.window) * 5, abs=30)
    # The windows differ by some pixels of the large photo, and the label maps along the edges of the person alone.
    assert (far.label_map != near.label_map).mean() < 0.02
    assert far.keypoints is not None and near.keypoints is not None
    np.testing.assert_allclose(far.keypoints, near.keypoints * 5, atol=30)


def blocks(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    label_map = np.zeros((200, 100), np.uint8)
    for top, left, bottom, right in boxes:
        label_map[top:bottom, left:right] = 4
    return label_map


def test_a_small_gap_does_not_part_a_person() -> None:
    person, num_persons = larger_person(blocks((10, 10, 80, 60), (82, 10, 150, 60)))
    assert num_persons == 1
    assert np.array_equal(person, blocks((10, 10, 80, 60), (82, 10, 150, 60)) != 0)


def test_a_wide_gap_parts_two_persons() -> None:
    person, num_persons = larger_person(blocks((10, 10, 80, 60), (86, 10, 190, 60)))
    assert num_persons == 2
    assert np.array_equal(person, blocks((86, 10, 190, 60)) != 0)


def test_what_is_small_beside_a_person_is_not_another_one() -> None:
    person, num_persons = larger_person(blocks((10, 10, 110, 60), (150, 10, 164, 60)))
    assert num_persons == 1
    assert np.array_equal(person, blocks((10, 10, 110, 60)) != 0)


def test_a_speck_is_nobody() -> None:
    person, num_persons = larger_person(blocks((50, 50, 56, 56)))
    assert num_persons == 0 and not person.any()


def test_a_person_at_the_edge_keeps_every_pixel() -> None:
    label_map = blocks((0, 0, 200, 40))
    person, _ = larger_person(label_map)
    assert np.array_equal(person, label_map != 0)
