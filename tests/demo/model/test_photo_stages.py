"""The stages of the parser and the pose estimator learn what their cases show."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fashion_rag.demo.model import recipe
from fashion_rag.demo.model.photo_cases import PhotoCase, sample_test_photo
from fashion_rag.demo.model.photo_stages import COCO_POINTS, ParserStage, PoseStage, dice_loss, heat_targets
from fashion_rag.demo.model.photo_views import IGNORED
from fashion_rag.person.pose_estimator import peaks
from fashion_rag.training.fit import TrainingPlan, TrainingProgress, fit


def photo_cases(count: int) -> list[PhotoCase]:
    photos = [sample_test_photo(0, index) for index in range(count)]
    return [PhotoCase(photo.image, photo.label_map, photo.box, photo.keypoints, photo.head_size) for photo in photos]


SMALL = (96, 72)


@pytest.mark.parametrize("make_stage", [partial(ParserStage, name="parser", size=SMALL), PoseStage])
def test_a_few_steps_lower_the_loss(make_stage: Callable[..., Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    stage = make_stage(photo_cases(4), torch.device("cpu"))
    losses: list[float] = []

    def watch(progress: TrainingProgress, average: torch.nn.Module) -> None:
        losses.append(progress.loss)

    plan = TrainingPlan(num_steps=24, batch_size=2, learning_rate=2e-3, warmup_steps=2, precision="float32")
    fit(stage, plan, tmp_path, 0, watch)
    assert np.mean(losses[-4:]) < 0.85 * np.mean(losses[:4])


def test_the_average_carries_the_statistics_of_batch_normalisation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stage = ParserStage(photo_cases(2), torch.device("cpu"), "parser", SMALL)
    name = "decode_head.batch_norm.running_var"
    untrained = stage.network.state_dict()[name].clone()
    plan = TrainingPlan(num_steps=4, batch_size=2, learning_rate=1e-3, ema_decay=0.5, precision="float32")
    fit(stage, plan, tmp_path, 0, lambda progress, average: None)
    saved = torch.load(tmp_path / "parser.pt", weights_only=True)
    averaged, last = saved["average"][name], saved["network"][name]
    assert not torch.equal(averaged, untrained)
    assert (averaged - last).abs().max() < (untrained - last).abs().max()


def test_the_parsers_loss_is_small_for_the_truth_alone() -> None:
    labels = torch.randint(0, 18, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    truth = 30 * torch.nn.functional.one_hot(labels, 18).permute(0, 3, 1, 2).float()
    assert dice_loss(truth, labels) < 1e-3
    assert dice_loss(truth.roll(1, dims=1), labels) > 0.99
    # What is ignored may be anything.
    labels[:, :4] = IGNORED
    truth[:, :, :4] = truth[:, :, :4].roll(1, dims=1)
    assert dice_loss(truth, labels) < 1e-3


def test_heat_maps_peak_at_their_points_and_are_empty_for_absent_ones() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(6, 40, (17, 2))
    is_present = np.arange(17) % 3 > 0
    targets = heat_targets(points, is_present)
    assert targets.shape == (17, *recipe.POSE_MAP_SIZE)
    assert not targets[~is_present].any()
    located, heights = peaks(targets.astype(np.float64))
    np.testing.assert_allclose(located[is_present], points[is_present], atol=1e-3)
    assert (heights[is_present] > 0.9).all()


def test_each_of_cocos_points_is_one_of_openposes_on_the_same_side() -> None:
    assert sorted(COCO_POINTS) == [number for number in range(18) if number != 1]
    # COCO begins with the nose and the left eye, and ends with the right ankle.
    assert (COCO_POINTS[0], COCO_POINTS[1], COCO_POINTS[16]) == (0, 15, 10)


def test_heat_maps_and_logits_have_half_the_size_of_the_input() -> None:
    with torch.inference_mode():
        logits = recipe.make_parser().eval()(torch.zeros(1, 3, *recipe.PARSER_SIZE)).logits
        heat = recipe.make_pose().eval()(torch.zeros(1, 3, *recipe.POSE_SIZE)).heatmaps
    assert logits.shape == (1, 18, recipe.PARSER_SIZE[0] // 2, recipe.PARSER_SIZE[1] // 2)
    assert heat.shape == (1, 17, *recipe.POSE_MAP_SIZE)
