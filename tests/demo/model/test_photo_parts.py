"""The two folders load with transformers alone and give the same results; all else in a bundle stays as it was."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoImageProcessor, SegformerForSemanticSegmentation, VitPoseForPoseEstimation

from fashion_rag.demo.model import recipe
from fashion_rag.demo.model.packaging import add_photo_parts
from fashion_rag.demo.model.photo_parts import write_photo_parts
from fashion_rag.errors import ArtifactError
from fashion_rag.manifest import DEMO_BUNDLE


def made_networks() -> tuple[Any, Any]:
    torch.manual_seed(0)
    return recipe.make_parser().eval(), recipe.make_pose().eval()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folders_load_with_transformers_and_give_the_same(tmp_path: Path) -> None:
    parser, pose = made_networks()
    write_photo_parts(tmp_path, parser, pose)
    pairs = [
        (parser, SegformerForSemanticSegmentation, "parser", recipe.PARSER_SIZE, "logits"),
        (pose, VitPoseForPoseEstimation, "pose", recipe.POSE_SIZE, "heatmaps"),
    ]
    for network, kind, part, size, output in pairs:
        loaded: Any = kind.from_pretrained(tmp_path / part, dtype=torch.float32)
        stored = network.half().float()
        pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            torch.testing.assert_close(getattr(loaded(pixels), output), getattr(stored(pixels), output))
        processor = AutoImageProcessor.from_pretrained(tmp_path / part)
        assert (processor.size["height"], processor.size["width"]) == size
        settings = json.loads((tmp_path / part / "preprocessor_config.json").read_text())
        assert settings["image_mean"] == settings["image_std"] == [0.5, 0.5, 0.5]
        assert settings["do_rescale"]
        assert settings["do_normalize"]
    names = json.loads((tmp_path / "parser" / "config.json").read_text())["id2label"]
    assert (names["4"], names["5"], names["9"]) == ("upper-clothes", "skirt", "left-shoe")
    weights = list(tmp_path.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in weights) <= 2.2e6


def test_a_network_stays_as_it_was(tmp_path: Path) -> None:
    parser, pose = made_networks()
    write_photo_parts(tmp_path, parser, pose)
    assert {weight.dtype for weight in parser.parameters()} == {torch.float32}


def test_adding_the_parts_changes_nothing_else_in_a_bundle(tmp_path: Path) -> None:
    bundle, work = tmp_path / "bundle", tmp_path / "work"
    shutil.copytree(DEMO_BUNDLE, bundle, ignore=shutil.ignore_patterns("parser", "pose"))
    before = files_of(bundle)
    work.mkdir()
    with pytest.raises(ArtifactError, match="'parser' has not been trained"):
        add_photo_parts(work, bundle)
    assert files_of(bundle) == before
    for name, network in zip(("parser", "pose"), made_networks(), strict=True):
        torch.save({"average": network.state_dict()}, work / f"{name}.pt")
    add_photo_parts(work, bundle)
    after = files_of(bundle)
    assert {name: after[name] for name in before} == before
    added = {f"{part}/{name}" for part in ("parser", "pose") for name in ADDED}
    assert after.keys() - before.keys() == added
    add_photo_parts(work, bundle)
    assert files_of(bundle) == after


ADDED = ("config.json", "model.safetensors", "preprocessor_config.json")


def test_only_a_bundle_gets_the_parts(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        add_photo_parts(tmp_path, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
