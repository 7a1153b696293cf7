import json

import numpy as np
import pytest
import torch

from fashion_rag.data.pose import KEYPOINT_FRAME, heat_maps, scale_keypoints, to_latent
from tests.golden.golden import named


def keypoints_of(golden, category, person_id):
    file = golden.dresscode / category / "keypoints" / f"{person_id}_2.json"
    return np.array(json.loads(file.read_text())["keypoints"])[:, :2]


def one_point(x, y):
    keypoints = np.zeros((18, 2))
    keypoints[4] = x, y
    return keypoints


def test_pose_maps_equal_the_published_ones(golden):
    tensors = golden.tensors("case6_dataprep")
    for name, parts in named(tensors, r"pose_(div|joints_)([\d_]+)\.(\d+)x(\d+)\.(\w+)\.(\w+)").items():
        kind, numbers, height, width, category, person_id = parts
        height, width = size = int(height), int(width)
        maps = heat_maps(scale_keypoints(keypoints_of(golden, category, person_id), KEYPOINT_FRAME, size), size)
        if kind == "div":
            maps = to_latent(maps, (height // int(numbers), width // int(numbers)))
        else:
            maps = maps[[int(joint) for joint in numbers.split("_")]]
        torch.testing.assert_close(maps, tensors[name], atol=golden.tolerance("case6_pose"), rtol=0)


def test_the_peak_is_at_the_point_and_falls_with_sigma():
    maps = heat_maps(one_point(10, 20), (64, 48), sigma=4.0)
    assert maps.shape == (18, 64, 48) and maps.dtype == torch.float32
    assert maps[4].argmax() == 20 * 48 + 10
    assert maps[4, 20, 10] == pytest.approx(1, abs=1e-6)
    assert maps[4, 20, 14] == pytest.approx(np.exp(-1), abs=1e-6)
    assert maps[[0, 3, 5, 17]].count_nonzero() == 0


def test_a_point_on_an_edge_is_present_and_one_far_outside_is_not_nan():
    assert heat_maps(one_point(0, 5), (32, 24))[4].max() == pytest.approx(1, abs=1e-6)
    far = heat_maps(one_point(90_000, 90_000), (32, 24))[4]
    assert torch.isfinite(far).all() and far.max() == 0


def test_keypoints_scale_each_axis_by_itself():
    scaled = scale_keypoints(one_point(384, 256), (512, 384), (64, 96))
    assert scaled[4].tolist() == [96, 32] and not scaled[0].any()


def test_to_latent_takes_the_centre_of_each_block():
    maps = torch.rand(2, 18, 32, 24, generator=torch.Generator().manual_seed(0))
    centres = maps.unfold(2, 8, 8).unfold(3, 8, 8)[..., 3:5, 3:5].mean((-1, -2))
    torch.testing.assert_close(to_latent(maps, (4, 3)), centres)
    torch.testing.assert_close(to_latent(maps[1], (4, 3)), to_latent(maps, (4, 3))[1])
