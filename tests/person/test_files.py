"""Tests of the human parser and the pose estimator as parts of a bundle: what is loaded, and what is refused."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import SegformerForSemanticSegmentation, VitPoseConfig, VitPoseForPoseEstimation

from fashion_rag.artifacts import write_json
from fashion_rag.bundle import Bundle
from fashion_rag.errors import ArtifactError
from fashion_rag.person.files import heat_map_size, logits_size, read_parser, read_pose_estimator
from fashion_rag.weights import read_state, write_state
from tests.person import toy


@pytest.fixture
def bundle(tiny_person_bundle: Path, tmp_path: Path) -> Path:
    """Return a copy of the bundle that a test may change."""
    return Path(shutil.copytree(tiny_person_bundle, tmp_path / "bundle"))


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def same_weights(loaded: torch.nn.Module, written: torch.nn.Module) -> bool:
    states = loaded.state_dict(), written.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], tensor) for key, tensor in states[1].items()
    )


def test_both_parts_load_with_the_weights_that_were_written(tiny_person_bundle: Path) -> None:
    bundle = Bundle.open(tiny_person_bundle)
    assert bundle.has_parser and bundle.has_pose_estimator
    parser, estimator = bundle.load_parser(), bundle.load_pose_estimator()
    torch.manual_seed(0)
    assert same_weights(parser.network.segformer, toy.make_segformer())
    torch.manual_seed(0)
    assert same_weights(estimator.network.vitpose, toy.make_vitpose())
    assert parser.input_picture.size == toy.PARSER_SIZE and estimator.input_picture.size == toy.POSE_SIZE
    assert parser.input_picture.mean == toy.MEAN and estimator.input_picture.std == toy.STD
    assert parser.classes == tuple(range(18))
    for part in (parser, estimator):
        assert not part.training and not any(weight.requires_grad for weight in part.parameters())


def test_what_runs_is_what_transformers_runs(tmp_path: Path) -> None:
    """Files that transformers has written have the older names of the weights, as the published ones do."""
    torch.manual_seed(3)
    segformer, vitpose = toy.make_segformer(), toy.make_vitpose()
    for name, network, size in (("parser", segformer, toy.PARSER_SIZE), ("pose", vitpose, toy.POSE_SIZE)):
        network.save_pretrained(tmp_path / name)
        write_json(tmp_path / name / "preprocessor_config.json", toy.processor(size))
    names = read_state(tmp_path / "parser" / "model.safetensors")
    assert "segformer.encoder.block.0.0.attention.self.query.weight" in names
    assert "decode_head.linear_c.0.proj.weight" in names
    pixels = torch.randn(2, 3, 64, 48)
    with torch.inference_mode():
        loaded = SegformerForSemanticSegmentation.from_pretrained(tmp_path / "parser").eval()
        assert torch.equal(read_parser(tmp_path / "parser").network(pixels), loaded(pixels).logits)
        pose = VitPoseForPoseEstimation.from_pretrained(tmp_path / "pose").eval()
        assert torch.equal(read_pose_estimator(tmp_path / "pose").network(pixels), pose(pixels).heatmaps)


def test_without_networks_nothing_is_held(tiny_person_bundle: Path) -> None:
    bundle = Bundle.open(tiny_person_bundle)
    parser, estimator = bundle.load_parser(networks=False), bundle.load_pose_estimator(networks=False)
    assert (*parser.state_dict(), *estimator.state_dict()) == ()
    assert (parser.input_picture, parser.classes) == (bundle.load_parser().input_picture, bundle.load_parser().classes)
    assert estimator.input_picture == bundle.load_pose_estimator().input_picture


def test_parts_are_loaded_in_the_precision_asked_for(tiny_person_bundle: Path) -> None:
    bundle = Bundle.open(tiny_person_bundle)
    for part in (bundle.load_parser(dtype=torch.float16), bundle.load_pose_estimator(dtype=torch.float16)):
        assert {weight.dtype for weight in part.parameters()} == {torch.float16}
        assert part.network(torch.zeros(1, 3, 64, 48)).dtype == torch.float32


def test_a_bundle_without_the_parts_is_whole(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert not bundle.has_parser and not bundle.has_pose_estimator


def test_a_bundle_may_have_the_parser_alone(bundle: Path) -> None:
    shutil.rmtree(bundle / "pose")
    assert Bundle.open(bundle).has_parser and not Bundle.open(bundle).has_pose_estimator


def test_a_pose_estimator_needs_a_parser(bundle: Path) -> None:
    shutil.rmtree(bundle / "parser")
    with pytest.raises(ArtifactError, match="pose: needs a human parser"):
        Bundle.open(bundle)


@pytest.mark.parametrize("part", ["parser", "pose"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_file_missing_is_named(bundle: Path, part: str, name: str) -> None:
    (bundle / part / name).unlink()
    with pytest.raises(ArtifactError, match=re.escape(f"{bundle / part / name}: no such file")):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("parser/config.json", {"model_type": "beit"}, "model_type is 'beit'; must be 'segformer'"),
        (
            "parser/config.json",
            {"architectures": ["SegformerForImageClassification"]},
            "architectures is ['SegformerForImageClassification']; must be ['SegformerForSemanticSegmentation']",
        ),
        ("parser/config.json", {"id2label": {"0": "background", "1": "wheel"}}, "unknown names: wheel"),
        ("pose/config.json", {"model_type": "vitdet"}, "model_type is 'vitdet'; must be 'vitpose'"),
        ("pose/config.json", {"id2label": {"0": "nose"}}, "the number of joints in id2label is 1; must be 17"),
        ("pose/preprocessor_config.json", {"size": {"height": 48, "width": 64}}, "size is (48, 64); must be (64, 48)"),
        ("parser/preprocessor_config.json", {"size": {"shortest_edge": 64}}, "must be a height and a width"),
        ("parser/preprocessor_config.json", {"image_mean": [0.5]}, "image_mean is [0.5]; must be three numbers"),
        ("parser/preprocessor_config.json", {"do_rescale": False}, "do_rescale is False; must be True"),
    ],
)
def test_parts_of_another_kind_are_refused(bundle: Path, file: str, changes: dict[str, Any], message: str) -> None:
    change_json(bundle / file, **changes)
    with pytest.raises(ArtifactError, match=re.escape(str(bundle / file)) + ".*" + re.escape(message)):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 6}, "num_experts is 6; must be 1"),
        ({"patch_size": [16, 20]}, "the remainder of image_size (64, 48) by patch_size is (0, 8); must be (0, 0)"),
    ],
)
def test_a_pose_estimator_that_cannot_be_called_is_refused(bundle: Path, changes: dict[str, Any], message: str) -> None:
    path = bundle / "pose" / "config.json"
    change_json(path, backbone_config=json.loads(path.read_text())["backbone_config"] | changes)
    with pytest.raises(ArtifactError, match=re.escape(message)):
        Bundle.open(bundle)


@pytest.mark.parametrize("size", [64, [64, 64], {"height": 64, "width": 64}])
def test_the_size_may_be_written_in_the_older_ways(bundle: Path, size: Any) -> None:
    change_json(bundle / "parser" / "preprocessor_config.json", size=size)
    assert Bundle.open(bundle).load_parser().input_picture.size == (64, 64)


@pytest.mark.parametrize(("part", "load"), [("parser", "load_parser"), ("pose", "load_pose_estimator")])
def test_weights_that_do_not_fit_are_refused(bundle: Path, part: str, load: str) -> None:
    path = bundle / part / "model.safetensors"
    state = read_state(path)
    missing = next(key for key in state if key.endswith(("running_mean", "position_embeddings")))
    write_state(path, {key: tensor for key, tensor in state.items() if key != missing} | {"extra": torch.zeros(3)})
    wanted = rf"{re.escape(missing)} is missing, expected .*extra \[3\] is unexpected"
    with pytest.raises(ArtifactError, match=f"{re.escape(str(path))}.*{wanted}"):
        getattr(Bundle.open(bundle), load)()


@pytest.mark.parametrize("size", [(64, 48), (50, 70), (192, 144)])
def test_the_sizes_of_outputs_are_known_before_they_are_computed(size: tuple[int, int]) -> None:
    segformer = toy.make_segformer()
    logits = segformer(torch.zeros(1, 3, *size)).logits
    assert logits_size(segformer.config, size) == tuple(logits.shape[2:])


@pytest.mark.parametrize("changes", [{}, {"scale_factor": 2}, {"use_simple_decoder": False}])
def test_the_size_of_heat_maps_is_known_before_they_are_computed(changes: dict[str, Any]) -> None:
    config = VitPoseConfig.from_dict(toy.make_vitpose().config.to_dict() | changes)
    heat_maps = VitPoseForPoseEstimation(config)(torch.zeros(2, 3, *toy.POSE_SIZE)).heatmaps
    assert heat_map_size(config) == tuple(heat_maps.shape[2:])
