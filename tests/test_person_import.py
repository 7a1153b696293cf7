import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from fashion_rag import person_import, published
from fashion_rag.bundle import Bundle
from fashion_rag.errors import ArtifactError
from fashion_rag.person_import import FILES, OLD_WEIGHTS_FILE, add_parts
from fashion_rag.weights import read_state
from tests.person import toy

MIT_CARD = "---\nlicense: mit\ntags:\n- vision\n---\n# A parser\n"


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """Return a copy of the bundle that a test may change."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_both_parts_are_added_and_all_else_stays(bundle: Path, tmp_path: Path) -> None:
    before = contents(bundle)
    inodes = {name: (bundle / name).stat().st_ino for name in before}
    parser = toy.write_parser(tmp_path / "my-parser", MIT_CARD)
    pose = toy.write_pose_estimator(tmp_path / "my-pose")
    added = add_parts(bundle, str(parser), str(pose))
    assert added.load_parser() and added.load_pose_estimator()
    after = contents(bundle)
    new = {f"{part}/{name}" for part in ("parser", "pose") for name in FILES if name != "README.md"}
    assert set(after) == set(before) | new
    for name, content in before.items():
        if name != "manifest.json":
            assert after[name] == content
            # The weights are not even copied.
            assert (bundle / name).stat().st_ino == inodes[name]
    for part, source in (("parser", parser), ("pose", pose)):
        for name in FILES[:3]:
            assert after[f"{part}/{name}"] == (source / name).read_bytes()


def test_the_manifest_says_what_is_known_of_the_licences(bundle: Path, tmp_path: Path) -> None:
    parser = toy.write_parser(tmp_path / "my-parser", MIT_CARD)
    pose = toy.write_pose_estimator(tmp_path / "my-pose")
    assert add_parts(bundle, str(parser), str(pose)).manifest.licence.splitlines() == [
        "Human parser my-parser: its model card states the licence mit.",
        "Pose estimator my-pose: its licence is not known, because it has no model card that states one.",
    ]


@pytest.mark.parametrize("card", ["no front matter", "---\nlicense: [\n---\n", "---\ntags: []\n---\n"])
def test_a_card_that_states_no_licence_is_none(bundle: Path, tmp_path: Path, card: str) -> None:
    parser = toy.write_parser(tmp_path / "my-parser", card)
    assert "its licence is not known" in add_parts(bundle, str(parser)).manifest.licence


def test_a_licence_with_a_name_of_its_own_is_named(bundle: Path, tmp_path: Path) -> None:
    parser = toy.write_parser(tmp_path / "my-parser", "---\nlicense: other\nlicense_name: my-licence\n---\n")
    assert "states the licence my-licence." in add_parts(bundle, str(parser)).manifest.licence


def test_weights_that_began_as_nvidia_s_are_told(bundle: Path, tmp_path: Path) -> None:
    card = MIT_CARD + "Its licence: https://github.com/NVlabs/SegFormer/blob/master/LICENSE\n"
    licence = add_parts(bundle, str(toy.write_parser(tmp_path / "my-parser", card))).manifest.licence
    assert licence.endswith("whose licence allows non-commercial use only.")


def test_a_part_is_replaced_with_its_licence(bundle: Path, tmp_path: Path) -> None:
    first, second = (toy.write_parser(tmp_path / f"parser-{seed}", MIT_CARD, seed) for seed in (1, 2))
    pose = toy.write_pose_estimator(tmp_path / "my-pose")
    add_parts(bundle, str(first), str(pose))
    replaced = add_parts(bundle, str(second))
    assert (bundle / "parser" / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert (first / "model.safetensors").read_bytes() != (second / "model.safetensors").read_bytes()
    assert [line.partition(":")[0] for line in replaced.manifest.licence.splitlines()] == [
        "Pose estimator my-pose",
        "Human parser parser-2",
    ]


def test_the_bundle_as_it_was_is_not_changed_where_another_has_its_files(bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(bundle, other, copy_function=os.link)
    before = contents(other)
    add_parts(bundle, str(toy.write_parser(tmp_path / "my-parser")))
    assert contents(other) == before


def test_files_are_copied_where_there_are_no_links(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError("no links here")

    before = contents(bundle)
    monkeypatch.setattr(person_import.os, "link", refuse)
    add_parts(bundle, str(toy.write_parser(tmp_path / "my-parser")))
    after = contents(bundle)
    assert all(after[name] == content for name, content in before.items() if name != "manifest.json")


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "another network"])
def test_a_part_that_does_not_fit_leaves_the_bundle_as_it_was(bundle: Path, tmp_path: Path, damage: str) -> None:
    parser = toy.write_parser(tmp_path / "my-parser")
    if damage == "another network":
        parser = toy.write_pose_estimator(tmp_path / "my-pose")
    else:
        (parser / damage).unlink()
    before = contents(bundle)
    with pytest.raises(ArtifactError, match=re.escape(str(parser))):
        add_parts(bundle, str(parser))
    assert contents(bundle) == before
    assert [path.name for path in bundle.parent.glob(".*")] == []


def test_a_pose_estimator_alone_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="needs a human parser"):
        add_parts(bundle, pose=str(toy.write_pose_estimator(tmp_path / "my-pose")))
    assert not Bundle.open(bundle).has_pose_estimator


def test_weights_of_the_older_kind_are_converted(bundle: Path, tmp_path: Path) -> None:
    parser = toy.write_parser(tmp_path / "my-parser")
    state = read_state(parser / "model.safetensors")
    torch.save(state, parser / OLD_WEIGHTS_FILE)
    (parser / "model.safetensors").unlink()
    add_parts(bundle, str(parser))
    converted = read_state(bundle / "parser" / "model.safetensors")
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[key], tensor) for key, tensor in state.items())


def test_weights_that_would_run_code_are_refused(bundle: Path, tmp_path: Path) -> None:
    parser = toy.write_parser(tmp_path / "my-parser")
    torch.save({"weight": Path("anything")}, parser / OLD_WEIGHTS_FILE)
    (parser / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match="not a readable file of weights"):
        add_parts(bundle, str(parser))


def test_an_id_is_fetched_from_the_hub(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = toy.write_parser(tmp_path / "my-parser", MIT_CARD)
    fetched = []

    def snapshot_download(source: str, allow_patterns: list[str]) -> str:
        fetched.append((source, allow_patterns))
        return str(parser)

    monkeypatch.setattr(published, "snapshot_download", snapshot_download)
    licence = add_parts(bundle, "mattmdjaga/segformer_b2_clothes").manifest.licence
    assert fetched == [("mattmdjaga/segformer_b2_clothes", FILES)]
    assert licence == (
        "Human parser mattmdjaga/segformer_b2_clothes: its model card states the licence mit. Its weights began as "
        "NVIDIA's SegFormer, whose licence allows non-commercial use only."
    )
