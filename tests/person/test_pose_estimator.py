import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import VitPoseImageProcessor
from transformers.models.vitpose.modeling_vitpose import VitPoseEstimatorOutput

from fashion_rag.person.labels import openpose_points
from fashion_rag.person.pixels import InputPicture
from fashion_rag.person.pose_estimator import PersonBox, PoseEstimator, PoseNetwork, View, cut_view, peaks
from tests.person import toy
from tests.person.test_parser import noise

INPUT = InputPicture(toy.POSE_SIZE, toy.MEAN, toy.STD)
PROCESSOR = VitPoseImageProcessor(size={"height": 64, "width": 48}, image_mean=toy.MEAN, image_std=toy.STD)
BOXES = [PersonBox(20.0, 10.0, 30.0, 55.5), PersonBox(-5.25, 30.0, 60.0, 20.0), PersonBox(30.0, 40.0, 60.0, 80.0)]


@pytest.fixture(scope="module")
def estimator() -> PoseEstimator:
    """Return a small pose estimator with random weights."""
    torch.manual_seed(0)
    return PoseEstimator(PoseNetwork(toy.make_vitpose()), INPUT).requires_grad_(False)


def bumps(points: NDArray[np.float64], size: tuple[int, int], height: float = 1.0) -> NDArray[np.float64]:
    """Return heat maps [K, h, w] with their peaks at `points` [K, 2]."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    x, y = points[:, 0, None, None], points[:, 1, None, None]
    return height * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 2.0**2))


@pytest.mark.parametrize("box", BOXES)
def test_a_person_is_cut_out_as_by_transformers(estimator: PoseEstimator, box: PersonBox) -> None:
    photo = noise(120, 90)
    expected = PROCESSOR(photo, boxes=[[list(box)]], return_tensors="pt")["pixel_values"]
    difference = (estimator.pixels([photo], [box]) - expected).abs()[0]
    # SciPy makes pixels black that lie half a pixel beyond the photo; Pillow continues the photo to its very edge.
    at_edge = torch.zeros(64, 48, dtype=torch.bool)
    outside = (expected[0] <= -torch.tensor(toy.MEAN).view(3, 1, 1) / torch.tensor(toy.STD).view(3, 1, 1) + 1e-5).all(0)
    at_edge[:, 1:] |= outside[:, 1:] ^ outside[:, :-1]
    at_edge[:, :-1] |= outside[:, 1:] ^ outside[:, :-1]
    at_edge[1:] |= outside[1:] ^ outside[:-1]
    at_edge[:-1] |= outside[1:] ^ outside[:-1]
    assert at_edge.float().mean() < 0.2
    # One and a half of 255 levels, where SciPy cuts decimals off and Pillow rounds.
    assert difference[:, ~at_edge].max() <= 1.5 / 255 / min(toy.STD)


@pytest.mark.parametrize("box", BOXES)
def test_points_are_those_of_transformers(box: PersonBox, estimator: PoseEstimator) -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 1, (17, 2)) * (11, 15)
    heat_maps = bumps(points, (16, 12), 0.8).astype(np.float32)
    outputs = VitPoseEstimatorOutput(heatmaps=torch.from_numpy(heat_maps)[None])
    ((expected,),) = PROCESSOR.post_process_pose_estimation(outputs, boxes=[[list(box)]])
    # In the same way as the network's own heat maps.
    told = PoseEstimator(PoseNetwork(toy.make_vitpose()), INPUT)
    told.network = torch.nn.Identity()
    told.pixels = lambda photos, boxes: torch.from_numpy(heat_maps)[None]  # type: ignore[method-assign]
    ((found, confidences),) = told.coco_points([noise(120, 90)], [box])
    # transformers lets a parabola at the very edge of a map reach far outside; here it ends after a pixel.
    inner = ((points > 1) & (points < (10, 14))).all(axis=1)
    assert inner.sum() >= 10
    np.testing.assert_allclose(found[inner], expected["keypoints"][inner], rtol=0, atol=0.01)
    np.testing.assert_allclose(confidences, expected["scores"], rtol=0, atol=1e-6)


def test_a_network_s_own_points_are_those_of_transformers(estimator: PoseEstimator) -> None:
    photo, box = noise(120, 90), BOXES[0]
    ((_, confidences),) = estimator.coco_points([photo], [box])
    outputs = estimator.network.vitpose(pixel_values=estimator.pixels([photo], [box]))
    ((expected,),) = PROCESSOR.post_process_pose_estimation(outputs, boxes=[[list(box)]])
    np.testing.assert_allclose(confidences, expected["scores"], rtol=0, atol=1e-5)


def test_peaks_lie_between_the_pixels() -> None:
    points = np.array([[5.0, 7.0], [5.3, 7.4], [4.6, 6.5], [0.0, 3.0], [11.0, 15.0]])
    found, confidences = peaks(bumps(points, (16, 12), 0.7))
    np.testing.assert_allclose(found[:3], points[:3], atol=0.05)
    np.testing.assert_allclose(found[3:], points[3:], atol=0.6)
    assert confidences[0] == pytest.approx(0.7)


def test_a_map_without_a_peak_keeps_its_pixel() -> None:
    found, confidences = peaks(np.zeros((1, 16, 12)))
    assert found.tolist() == [[0, 0]] and confidences.tolist() == [0]


def test_a_point_is_found_where_the_photo_has_it(estimator: PoseEstimator) -> None:
    coloured = PoseEstimator(PoseNetwork(toy.make_vitpose()), INPUT)
    coloured.network = toy.ColourPose()
    photo = Image.new("RGB", (900, 1200), toy.COLOURS["background"])
    photo.paste(toy.COLOURS["head"], (400, 300, 461, 361))
    # The middle of that square, in which whole numbers are the middles of pixels.
    for box in (PersonBox(300, 200, 300, 600), PersonBox(380, 250, 900, 300), PersonBox(0, 0, 900, 1200)):
        (keypoints,) = coloured.keypoints([photo], [box])
        view = coloured.view(box)
        # The network has a pixel for so many pixels of the photo.
        np.testing.assert_allclose(keypoints[0], (430, 330), atol=0.3 * view.width / 12)


def test_points_that_are_not_sure_are_absent(estimator: PoseEstimator) -> None:
    (keypoints,) = estimator.keypoints([noise(120, 90)], [BOXES[0]])
    ((points, confidences),) = estimator.coco_points([noise(120, 90)], [BOXES[0]])
    assert confidences.min() < 0.3 < confidences.max()
    assert np.array_equal(keypoints, openpose_points(points, confidences, 0.3))


def test_the_view_is_the_box_grown_to_the_shape_of_the_input(estimator: PoseEstimator) -> None:
    assert estimator.view(PersonBox(10, 20, 30, 80)) == View(25, 60, 75, 100)
    assert estimator.view(PersonBox(10, 20, 90, 40)) == View(55, 40, 112.5, 150)


def test_what_is_beyond_the_photo_is_black() -> None:
    cut = np.asarray(cut_view(Image.new("RGB", (60, 40), "white"), View(0, 20, 30, 38), (40, 30)))
    assert (cut[:, :14] == 0).all() and (cut[:, 16:] == 255).all()


def test_a_large_photo_is_averaged_and_not_sampled() -> None:
    # Lines of one pixel, black and white by turns, are grey from afar.
    lines = np.zeros((640, 480, 3), np.uint8)
    lines[::2] = 255
    cut = np.asarray(cut_view(Image.fromarray(lines), View(240, 320, 400, 560), (64, 48)))
    assert ((cut > 120) & (cut < 136)).all()


def test_a_large_photo_is_cut_where_a_small_one_is() -> None:
    small = noise(160, 120)
    large = small.resize((1200, 1600), Image.Resampling.BICUBIC)
    near = np.asarray(cut_view(small, View(60, 80, 90, 120), (64, 48))).astype(int)
    # The middle of a pixel of the small photo is that of ten by ten pixels of the large one.
    far = np.asarray(cut_view(large, View(604.5, 804.5, 900, 1200), (64, 48))).astype(int)
    assert np.abs(near - far).max() <= 6


def test_a_photo_does_not_depend_on_those_beside_it(estimator: PoseEstimator) -> None:
    photos = [noise(120, 90, seed) for seed in range(3)]
    together = estimator.coco_points(photos, BOXES)
    for photo, box, (points, confidences) in zip(photos, BOXES, together, strict=True):
        ((alone, confidences_alone),) = estimator.coco_points([photo], [box])
        np.testing.assert_allclose(confidences, confidences_alone, rtol=0, atol=1e-5)
        np.testing.assert_allclose(points, alone, rtol=0, atol=0.5)
