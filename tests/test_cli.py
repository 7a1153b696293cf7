import errno
import importlib
import inspect
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from export.cpu_choice import CpuChoice, measured_backend
from export.flavours import Flavour
from export.parity import Parity
from export.to_tensorrt import BuildProgress
from fashion_rag.bundle import Bundle
from fashion_rag.bundle_import import import_bundle
from fashion_rag.catalogue.changes import GarmentDeleted, append
from fashion_rag.catalogue.storage import Root
from fashion_rag.catalogue.table import Garments
from fashion_rag.cli import app
from fashion_rag.demo.model.evaluate import AgreementRow, DemoReport
from fashion_rag.errors import ArtifactError, InvalidRequest
from fashion_rag.manifest import DEMO_BUNDLE, Manifest
from fashion_rag.request import EditRequest, EditResult, Window
from fashion_rag.weights import StateFile
from serve.app import local_config, start
from tests.person import toy
from tests.profiles import display_p3


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def all_commands() -> Iterator[Any]:
    groups = [typer.main.get_command(app)]
    while groups:
        group: Any = groups.pop()
        yield group
        if hasattr(group, "commands"):
            groups += group.commands.values()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    result = run("demo", "world", folder, "--num-pairs", 2)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> dict[str, Path]:
    """Return the options `--image` and `--mask` of an edit: a photo of noise, with a box to repaint."""
    pixels = np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8)
    mask = np.zeros((80, 60), np.uint8)
    mask[20:60, 15:45] = 255
    paths = {"image": tmp_path / "person.png", "mask": tmp_path / "mask.png"}
    Image.fromarray(pixels).save(paths["image"])
    Image.fromarray(mask).save(paths["mask"])
    return paths


def edit(photo: dict[str, Path], out: Path, *more: object) -> Result:
    given = ("--image", photo["image"], "--mask", photo["mask"], "--prompt", "red shirt", "--out", out, "--steps", 2)
    return run("edit", *given, *more)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_every_command_and_option_is_explained() -> None:
    for command in all_commands():
        assert command.help, command.name
        parameters = [parameter for parameter in command.params if parameter.name != "help"]
        assert [parameter.name for parameter in parameters if not parameter.help] == []


def test_what_the_project_refuses_is_one_line_and_status_2(tmp_path: Path) -> None:
    result = run("bundle", "check", tmp_path / "nowhere")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert str(tmp_path / "nowhere") in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("edit",),
        ("edit", "--colour", "red"),
        ("edits",),
        ("serve", "--port", "eighty"),
        ("index", "build", "a", "b", "--out", "c"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ") and result.stderr.endswith("--help`.\n")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/models/out"), 1, "/models/out: No space left on device"),
        (ArtifactError("a.bin: is damaged"), 1, "a.bin: is damaged"),
        (InvalidRequest("steps", 0, "must be\nmore"), 2, "steps: got 0; must be more"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_an_expected_fault_is_one_line_and_has_its_status(
    error: BaseException, status: int, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise error

    monkeypatch.setattr("fashion_rag.demo.world.layout.write_dresscode", fail)
    result = run("demo", "world", tmp_path)
    assert result.exit_code == status
    assert result.stderr.splitlines()[-1] == f"error: {message}"


def test_any_other_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise RuntimeError("a fault of our own")

    monkeypatch.setattr("fashion_rag.demo.world.layout.write_dresscode", fail)
    result = run("demo", "world", tmp_path)
    assert result.exit_code == 1
    assert isinstance(result.exception, RuntimeError)


def test_demo_world_draws_pairs_and_shows_progress(tmp_path: Path) -> None:
    result = run("demo", "world", tmp_path, "--num-pairs", 1)
    assert result.exit_code == 0
    assert len(list(tmp_path.glob("*/images/*_0.jpg"))) == 3
    assert "3/3" in result.stderr


def test_a_log_gets_lines_in_place_of_bars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fashion_rag.cli.base.LINE_EVERY_S", math.inf)
    result = run("demo", "world", tmp_path / "rare", "--num-pairs", 1)
    assert "drawing: 1 of 3\n" in result.stderr
    assert "drawing: 2 of 3" not in result.stderr
    monkeypatch.setattr("fashion_rag.cli.base.LINE_EVERY_S", 0.0)
    result = run("demo", "world", tmp_path / "often", "--num-pairs", 1)
    assert [f"drawing: {number} of 3\n" in result.stderr for number in (1, 2, 3)] == [True, True, True]


def test_bundle_check_loads_every_part(tiny_bundle: Path) -> None:
    result = run("bundle", "check", tiny_bundle)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(Manifest.read(tiny_bundle / "manifest.json").name)
    assert result.stdout.count(": loaded") == 5


def test_bundle_add_puts_in_what_bundle_check_loads(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    parser, pose = toy.write_parser(tmp_path / "parser"), toy.write_pose_estimator(tmp_path / "pose")
    result = run("bundle", "add", bundle, "--parser", parser, "--pose", pose)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("its licence is not known") == 2
    assert result.stdout.startswith(f"{bundle}: Human parser parser: ")
    checked = run("bundle", "check", bundle)
    assert checked.stdout.endswith("  parser: loaded\n  pose_estimator: loaded\n")


def test_bundle_check_finds_a_damaged_part(tiny_bundle: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "bundle"
    for path in tiny_bundle.rglob("*"):
        if path.is_file():
            copy = damaged / path.relative_to(tiny_bundle)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes()[:100] if path.parent.name == "vae" else path.read_bytes())
    result = run("bundle", "check", damaged)
    assert result.exit_code == 1
    assert "vae" in result.stderr


@pytest.fixture
def untrained(tiny_bundle: Path, tmp_path: Path) -> Path:
    """Return a copy of the bundle that is marked as untrained."""
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "untrained"))
    replace(Manifest.read(bundle / "manifest.json"), untrained=True).write(bundle / "manifest.json")
    return bundle


def test_an_untrained_bundle_edits_only_where_that_is_wanted(
    untrained: Path, photo: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "edited.png"
    options = ("--category", "dresses", "--num-garments", 0, "--bundle", untrained)
    refused = edit(photo, out, *options)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"error: {untrained}: is untrained") and refused.stderr.count("\n") == 1
    assert not out.exists()
    assert edit(photo, out, *options, "--untrained").exit_code == 0
    assert out.exists()


def test_an_untrained_bundle_is_not_served(untrained: Path, tiny_catalogue: Path) -> None:
    config = local_config(untrained, tiny_catalogue)
    with pytest.raises(ArtifactError, match=r"is untrained.*--untrained"):
        start(config, "127.0.0.1", 0)
    assert local_config(untrained, tiny_catalogue, untrained=True).untrained


def test_search_finds_garments_of_a_built_catalogue(tiny_bundle: Path, world: Path, tmp_path: Path) -> None:
    catalogue = tmp_path / "catalogue"
    built = run("index", "build", world, "--out", catalogue, "--bundle", tiny_bundle)
    assert built.exit_code == 0, built.output
    assert "6 garments" in built.stdout
    options = ("--category", "dresses", "--catalogue", catalogue, "--bundle", tiny_bundle)
    lines = run("search", "red dress", *options, "--k", 2).stdout.splitlines()
    scores = [float(line.split()[0]) for line in lines]
    assert len(lines) == 2
    assert scores == sorted(scores, reverse=True)
    assert {line.split()[1] for line in lines} == {path.name[:6] for path in world.glob("dresses/images/*_1.jpg")}
    pictures = [Path(line.split()[-1]) for line in lines]
    assert all(picture.is_relative_to(catalogue) and picture.is_file() for picture in pictures)


def test_edit_with_a_garment_picture(tiny_bundle: Path, world: Path, photo: dict[str, Path], tmp_path: Path) -> None:
    garment = next(world.glob("upper_body/images/*_1.jpg"))
    options = ("--category", "upper_body", "--garment", garment, "--bundle", tiny_bundle)
    result = edit(photo, tmp_path / "deep/first.png", *options)
    assert result.exit_code == 0, result.output
    assert f"garments {garment.stem}, seed 0" in result.stdout
    assert "2/2" in result.stderr  # steps done, of steps in all
    before, after = pixels(photo["image"]), pixels(tmp_path / "deep/first.png")
    kept = pixels(photo["mask"]) == 0
    assert (after[kept] == before[kept]).all()
    assert (after[~kept] != before[~kept]).any()
    edit(photo, tmp_path / "again.png", *options)
    assert (pixels(tmp_path / "again.png") == after).all()
    edit(photo, tmp_path / "other.png", *options, "--seed", 1)
    assert (pixels(tmp_path / "other.png") != after).any()


def test_a_photo_and_a_prompt_are_enough_where_the_photo_says_what_to_repaint(
    tiny_bundle: Path, photo: dict[str, Path], tmp_path: Path
) -> None:
    before, mask = pixels(photo["image"]), pixels(photo["mask"])
    Image.fromarray(np.dstack([before, 255 - mask])).save(photo["image"])
    options = ("--category", "dresses", "--bundle", tiny_bundle, "--steps", 2)
    saved = tmp_path / "masks" / "saved.png"
    arguments = ("--image", photo["image"], "--prompt", "red dress", "--out", tmp_path / "a.png", "--save-mask", saved)
    result = run("edit", *arguments, *options)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'a.png'}: category dresses, garments none, seed 0\n"
    assert (pixels(saved) == mask).all()
    assert (pixels(tmp_path / "a.png")[mask == 0] == before[mask == 0]).all()


def test_what_was_found_is_told(
    tiny_bundle: Path, photo: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edited(pipeline: Any, request: EditRequest, garments: Any, progress: Any) -> EditResult:
        assert (request.mask, request.category, request.keypoints, request.mask_type) == (None, None, None, "mask")
        assert [garment.category for garment in garments] == [""]
        return EditResult(
            image=request.image,
            mask=np.ones((80, 60), np.uint8),
            window=Window(0, 0, 80, 60),
            category="lower_body",
            category_confidence=0.834,
            garment_ids=("a",),
            seed=3,
            timings_s={},
            warnings=("There are two persons.",),
        )

    monkeypatch.setattr("fashion_rag.pipeline.Pipeline.__call__", edited)
    monkeypatch.setattr("fashion_rag.cli.edits.has_parser", lambda bundle: True)
    arguments = ("--image", photo["image"], "--prompt", "blue jeans", "--out", tmp_path / "a.png")
    more = ("--mask-type", "mask", "--garment", photo["image"], "--bundle", tiny_bundle)
    result = run("edit", *arguments, *more)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'a.png'}: category lower_body (83% sure), garments a, seed 3\n"
    assert "warning: There are two persons.\n" in result.stderr


def test_an_edited_photo_keeps_its_profile(tiny_bundle: Path, photo: dict[str, Path], tmp_path: Path) -> None:
    before = pixels(photo["image"])
    Image.fromarray(before).save(photo["image"], icc_profile=display_p3())
    for name in ("edited.png", "edited.jpg", "edited.webp"):
        result = edit(photo, tmp_path / name, "--category", "dresses", "--num-garments", 0, "--bundle", tiny_bundle)
        assert result.exit_code == 0, result.output
        with Image.open(tmp_path / name) as written:
            assert written.info["icc_profile"] == display_p3()
    kept = pixels(photo["mask"]) == 0
    assert (pixels(tmp_path / "edited.png")[kept] == before[kept]).all()


def test_a_catalogue_is_published_rolled_back_and_pruned(tiny_bundle: Path, world: Path, tmp_path: Path) -> None:
    catalogue, work = tmp_path / "catalogue", tmp_path / "work"
    options = ("--catalogue", catalogue, "--bundle", tiny_bundle)

    def versions(*more: object) -> list[str]:
        result = run("index", "versions", "--catalogue", catalogue, *more)
        assert result.exit_code == 0, result.output
        return [line for line in result.stdout.splitlines() if "garments" in line]

    built = run("index", "build", world, "--out", catalogue, "--bundle", tiny_bundle, "--work", work)
    assert "6 garments (6 encoded, 0 kept, 0 removed)" in built.stdout
    (first,) = versions()
    assert first.startswith("* ") and first.endswith("6 garments")
    garments = Garments.read(next((catalogue / "versions").glob("*/garments.parquet")))
    append(Root.at(catalogue), GarmentDeleted(garments[0].id))
    published = run("index", "publish", *options)
    assert "5 garments (0 encoded, 5 kept, 1 removed)" in published.stdout
    assert [line[0] for line in versions()] == [" ", "*"]
    name = first.split()[1]
    assert [line[0] for line in versions("--activate", name)] == ["*", " "]
    assert len(versions("--prune", 1)) == 2  # readers may still be on what was just replaced
    refused = run("index", "versions", "--catalogue", catalogue, "--activate", "no-version")
    assert refused.exit_code == 1 and "must be the name of a version" in refused.stderr


def test_index_build_says_what_it_skips(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "shop" / "dresses").mkdir(parents=True)
    Image.new("RGB", (20, 30), "red").save(tmp_path / "shop" / "dresses" / "a.png")
    (tmp_path / "shop" / "dresses" / "b.png").write_bytes(b"no picture")
    options = ("--out", tmp_path / "catalogue", "--bundle", tiny_bundle, "--work", tmp_path / "work")
    result = run("index", "build", tmp_path / "shop", *options)
    assert result.exit_code == 0
    assert "skipped b: garment b: b.png: image" in result.stderr
    assert "1 garments (1 encoded" in result.stdout


def test_index_evaluate_prints_recall(tiny_bundle: Path, tiny_catalogue: Path, tmp_path: Path) -> None:
    options = ("--catalogue", tiny_catalogue, "--bundle", tiny_bundle, "--json", tmp_path / "results" / "recall.json")
    result = run("index", "evaluate", *options)
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "results" / "recall.json").read_text())
    recalls = {(row["category"], row["num_chunks"]): row for row in written["recall"]}
    assert len(recalls) == 8 and recalls["all", 3]["num_garments"] == 12
    # A category has four garments, which are all among the first five.
    assert recalls["dresses", 1]["at"]["5"] == 1.0
    assert f"{recalls['all', 1]['at']['1']:.3f}" in result.stdout


def test_search_narrows_by_attributes(tiny_bundle: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (20, 30), "red").save(tmp_path / f"{name}.png")
    columns = {"id": ["a", "b"], "category": ["dresses"] * 2, "image": ["a.png", "b.png"], "size": [["S"], ["S", "M"]]}
    pq.write_table(pa.table(columns), tmp_path / "shop.parquet")
    options = ("--out", tmp_path / "catalogue", "--bundle", tiny_bundle, "--work", tmp_path / "work")
    assert run("index", "build", tmp_path / "shop.parquet", *options).exit_code == 0
    search = ("search", "red", "--category", "dresses", "--catalogue", tmp_path / "catalogue", "--bundle", tiny_bundle)
    assert len(run(*search).stdout.splitlines()) == 2
    (line,) = run(*search, "--attribute", "size=M").stdout.splitlines()
    assert " b " in line
    none = run(*search, "--attribute", "size=XXL")
    assert (none.exit_code, none.stdout) == (0, "")
    assert none.stderr.endswith("no garment of dresses has size=XXL\n")
    assert run(*search, "--attribute", "size").exit_code == 2


def test_edit_retrieves_from_a_catalogue(
    tiny_bundle: Path, tiny_catalogue: Path, photo: dict[str, Path], tmp_path: Path
) -> None:
    options = ("--category", "dresses", "--catalogue", tiny_catalogue, "--num-garments", 2, "--bundle", tiny_bundle)
    result = edit(photo, tmp_path / "edited.png", *options)
    assert result.exit_code == 0, result.output
    assert len(result.stdout.partition("garments ")[2].split(", ")) == 3  # two garments and the seed


def test_search_says_which_categories_have_garments(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "shop" / "dresses").mkdir(parents=True)
    Image.new("RGB", (20, 30), "red").save(tmp_path / "shop" / "dresses" / "a.png")
    options = ("--out", tmp_path / "catalogue", "--bundle", tiny_bundle, "--work", tmp_path / "work")
    assert run("index", "build", tmp_path / "shop", *options).exit_code == 0
    search = ("search", "red", "--catalogue", tmp_path / "catalogue", "--bundle", tiny_bundle, "--category")
    empty = run(*search, "upper_body")
    assert (empty.exit_code, empty.stdout) == (0, "")
    assert empty.stderr.endswith("no garment of upper_body; there are garments of dresses (1)\n")
    unknown = run(*search, "hats")
    assert unknown.exit_code == 2
    assert "category: got 'hats'; must be one of dresses, lower_body, upper_body" in unknown.stderr


def test_a_forgotten_bundle_is_named_before_anything_is_loaded(
    tiny_catalogue: Path, photo: dict[str, Path], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_weights(monkeypatch)
    given = ("--catalogue", tiny_catalogue)
    for result in (
        run("search", "red", "--category", "dresses", *given),
        run("index", "evaluate", *given),
        run("index", "publish", *given),
        edit(photo, tmp_path / "edited.png", "--category", "dresses", *given),
        run("evaluate", world, "--out", tmp_path / "evaluation", *given),
    ):
        assert result.exit_code == 1
        last = result.stderr.splitlines()[-1]
        assert f"{tiny_catalogue}: was built with another bundle" in last
        assert "the packaged demo bundle, which is the default" in last and "with --bundle" in last


def forbid_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every attempt to load weights fail, because wrong options must be found before."""

    def load(file: StateFile, path: Path) -> None:
        raise AssertionError(f"{path}: was loaded")

    monkeypatch.setattr(StateFile, "__init__", load)


def test_edit_finds_what_is_wrong_before_it_loads_weights(
    tiny_bundle: Path, photo: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_weights(monkeypatch)
    Image.new("L", (60, 81), 255).save(tmp_path / "tall.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty").mkdir()
    garment = ("--category", "dresses", "--garment", photo["image"])
    for more, message in (
        (("--mask", tmp_path / "tall.png"), "mask: got '60x81'; must have the image's size, 60x80"),
        (("--image", tmp_path / "nowhere.png"), "must be a file that exists"),
        (("--mask", tmp_path / "text.png"), "mask: got"),
        (("--garment", tmp_path / "text.png"), "garment: got"),
        (("--keypoints", tmp_path / "nowhere.json"), "keypoints: got"),
        (("--out", tmp_path / "edited.docx"), "out: got"),
        (("--save-mask", tmp_path / "mask.docx"), "save-mask: got"),
        (("--out", tmp_path / "folder.png"), "must be a file, and is a folder"),
        (("--out", photo["image"] / "edited.png"), "must be a folder, and is a file"),
        (("--bundle", tmp_path / "empty"), "has no manifest.json"),
        (("--catalogue", tmp_path / "empty"), "must be a folder that `fashion-rag index build` has written"),
        (("--steps", 0), "steps: got 0"),
        (("--guided", "0,2"), "guidance_end: got 2.0"),
        (("--guided", "0.2"), "guided: got '0.2'"),
        (("--guidance-start", "-1"), "guidance_start: got -1.0"),
        (("--guidance-end", "2"), "guidance_end: got 2.0"),
        (("--device", "abacus"), "device: got 'abacus'"),
    ):
        result = edit(photo, tmp_path / "edited.png", *garment, "--bundle", tiny_bundle, *more)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr and result.stderr.count("\n") == 1
    few = ("--category", "dresses", "--bundle", tiny_bundle)
    without = edit(photo, tmp_path / "edited.png", *few, "--num-garments", 1)
    assert without.exit_code == 2 and "must be 0 without --catalogue or --garment" in without.stderr
    unknown = run("edit", "--image", photo["image"], "--prompt", "red", "--out", tmp_path / "edited.png", *few)
    assert unknown.exit_code == 2 and "mask: is missing; must be given" in unknown.stderr
    assert "no human parser" in unknown.stderr and unknown.stderr.count("\n") == 1


def test_every_command_finds_what_is_wrong_before_it_loads_weights(
    tiny_bundle: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_weights(monkeypatch)
    file, nowhere, out = tmp_path / "file", tmp_path / "nowhere", tmp_path / "out"
    file.touch()
    bad_bundle = ("--bundle", nowhere)
    for arguments, option in (
        (("index", "build", nowhere, "--out", out), "source"),
        (("index", "build", world, "--out", file), "out"),
        (("index", "build", world, "--out", out, *bad_bundle), "bundle"),
        (("index", "publish", "--catalogue", nowhere), "catalogue"),
        (("index", "versions", "--catalogue", nowhere), "catalogue"),
        (("index", "versions", "--catalogue", world), "catalogue"),
        (("index", "evaluate", "--catalogue", nowhere), "catalogue"),
        (("search", "red", "--category", "dresses", "--catalogue", nowhere), "catalogue"),
        (("serve", "--catalogue", nowhere), "catalogue"),
        (("serve", "--config", nowhere), "config"),
        (("serve", "--api-keys", nowhere), "api-keys"),
        (("serve", *bad_bundle), "bundle"),
        (("evaluate", nowhere, "--out", out), "root"),
        (("evaluate", world, "--out", file), "out"),
        (("evaluate", world, "--out", out), "num_retrieved"),
        (("evaluate", world, "--out", out, "--num-retrieved", 0, "--metrics", "beauty"), "metrics"),
        (("evaluate", world, "--out", out, "--num-retrieved", 0, "--lpips-weights", nowhere), "lpips-weights"),
        (("prepare", nowhere, world, world / "fine_captions.json", "--out", out), "photos"),
        (("prepare", world, world, world / "fine_captions.json", "--out", file), "out"),
        (("train", nowhere, "--work", out, "--out", out), "data"),
        (("train", world, "--work", file, "--out", out), "work"),
        (("train", world, "--work", out, "--out", out, "--steps", 0), "steps"),
        (("bench", "--out", file / "a.json"), "out"),
        (("bench", "--out", out, "--trace", nowhere), "trace"),
        (("bundle", "import", "--unet", nowhere, "--adapter", file, "--out", out), "unet"),
        (("bundle", "check", file), "bundle"),
        (("bundle", "add", file, "--parser", nowhere), "bundle"),
        (("bundle", "add", tiny_bundle), "parser"),
        (("export", "onnx", nowhere, "--out", out), "bundle"),
        (("export", "onnx", tiny_bundle, "--out", file), "out"),
        (("export", "tensorrt", tiny_bundle, nowhere), "folder"),
        (("export", "measure", nowhere), "bundle"),
        (("export", "measure", tiny_bundle, nowhere), "folder"),
        (("export", "measure", tiny_bundle, "--rows", "2,many"), "rows"),
        (("export", "measure", tiny_bundle, "--rows", "0,2"), "rows"),
        (("export", "measure", tiny_bundle, "--rounds", 0), "rounds"),
        (("export", "measure", tiny_bundle, "--threads", 0), "threads"),
        (("demo", "world", file), "out"),
        (("demo", "world", out, "--num-pairs", 0), "num-pairs"),
        (("demo", "shop", file), "out"),
        (("demo", "train", "--work", file), "work"),
        (("demo", "train", "--work", out, "--stage", "love"), "stage"),
        (("demo", "evaluate", *bad_bundle), "bundle"),
        (("demo", "run", "--out", file / "a.png"), "out"),
    ):
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (2, ""), arguments
        assert (
            result.stderr.startswith((f"error: {option}: got ", f"error: {option}: is missing"))
            and result.stderr.count("\n") == 1
        )
    assert not out.exists()


def test_a_folder_that_may_not_be_written_to_is_found_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write everywhere, so the test gives the answer itself.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path or mode == os.R_OK)
    for out in (tmp_path, tmp_path / "deep" / "folder"):
        result = run("demo", "world", out)
        assert result.exit_code == 2
        assert f"in a folder that may be written to, and {tmp_path} may not" in result.stderr


def test_an_export_into_a_folder_of_something_else_is_refused_at_once(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_weights(monkeypatch)
    (tmp_path / "holiday.jpg").touch()
    result = run("export", "onnx", tiny_bundle, "--out", tmp_path)
    assert result.exit_code == 1
    assert "exists and has no manifest.json; give a new or an empty folder" in result.stderr


def test_a_url_of_an_unknown_kind_is_one_line(tiny_bundle: Path) -> None:
    result = run("index", "versions", "--catalogue", "carrier-pigeon://shop/catalogue")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: carrier-pigeon://shop/catalogue: must be a folder or a URL")


def test_edit_names_the_option_that_is_wrong(tiny_bundle: Path, photo: dict[str, Path], tmp_path: Path) -> None:
    result = edit(photo, tmp_path / "edited.png", "--category", "hats", "--bundle", tiny_bundle)
    assert result.exit_code == 2
    assert "category: got 'hats'" in result.stderr
    assert not (tmp_path / "edited.png").exists()


def test_evaluate_prints_the_table_and_goes_on_where_it_stood(
    world: Path, tiny_bundle: Path, tiny_catalogue: Path, tmp_path: Path
) -> None:
    options = ("--out", tmp_path, "--bundle", tiny_bundle, "--catalogue", tiny_catalogue, "--steps", 2)
    more = ("--order", "both", "--num-retrieved", "0,2", "--categories", "dresses,upper_body", "--limit", 1)
    result = run("evaluate", world, *options, *more)
    assert result.exit_code == 0, result.output
    assert result.stdout == (tmp_path / "table.md").read_text()
    assert result.stdout.count("| all | 2 |") == 4
    assert "| kind | colour | pattern |" in result.stdout
    edits = sorted(tmp_path.glob("*/*/*.png"))
    assert len(edits) == 8
    written = [path.stat().st_mtime_ns for path in edits]
    assert run("evaluate", world, *options, *more).stdout == result.stdout
    assert [path.stat().st_mtime_ns for path in edits] == written
    refused = run("evaluate", world, *options, *more, "--seed", 1)
    assert refused.exit_code == 2 and "seed is 0 there" in refused.stderr


def test_evaluate_says_what_cannot_be(world: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    options = ("--out", tmp_path, "--bundle", tiny_bundle, "--num-retrieved", 0)
    for wrong, message in (
        (("--metrics", "ssim,fid"), "metrics: got 'fid'; needs a file of weights: give --inception-weights"),
        (("--server", "http://127.0.0.1:9", "--catalogue", "any"), "server: "),
        (("--num-chunks", "one"), "num_chunks: got 'one'"),
        (("--categories", "hats"), "categories: "),
        (("--mask-from", "parser"), "mask-from: got 'parser'; must be 'given', because the bundle has no"),
    ):
        result = run("evaluate", world, *options, *wrong)
        assert result.exit_code == 2
        assert message in result.stderr
    assert list(tmp_path.glob("*/*/*.png")) == []


def test_demo_evaluate_prints_the_table_and_keeps_the_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = DemoReport(
        rows=[
            AgreementRow("one garment", 0.75, 1.0, 0.7, pattern=0.5, pattern_of_patterned=0.25, both=0.4, clip_i=0.6)
        ],
        retrieval_at_1=0.9,
        retrieval_at_3=0.95,
        vae_psnr_db=30.0,
        third_garment_change=4.0,
        num_cases=3,
        num_inference_steps=20,
        guidance_scale=2.5,
    )

    def evaluate(
        bundle: Path, cases: int, *, device: str, dtype: torch.dtype, progress: Callable[[], None]
    ) -> DemoReport:
        assert (cases, device, dtype) == (3, "cpu", torch.bfloat16)
        progress()
        return report

    monkeypatch.setattr("fashion_rag.demo.model.evaluate.evaluate", evaluate)
    result = run("demo", "evaluate", "--cases", 3, "--dtype", "bfloat16", "--json", tmp_path / "results/report.json")
    assert result.exit_code == 0, result.output
    for shown in ("one garment", "0.750", "0.500", "0.250", "0.950", "30.0"):
        assert shown in result.stdout
    written = json.loads((tmp_path / "results/report.json").read_text())
    assert written.pop("from")["packages"]
    assert written == report.as_dict()


def test_demo_train_runs_the_stages_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []

    def train(work: Path, stages: Any, num_steps: Any, *, seed: int, report: Callable[..., None]) -> None:
        report("vae", 1, 2, 0.5)
        calls.append((work, stages, num_steps, seed))

    monkeypatch.setattr("fashion_rag.demo.model.train.train", train)
    monkeypatch.setattr("fashion_rag.demo.model.packaging.package", lambda work, out: calls.append((work, out)))
    monkeypatch.setattr(
        "fashion_rag.demo.model.packaging.add_photo_parts", lambda work, bundle: calls.append(("parts", work, bundle))
    )
    asked = ("--stage", "vae", "--stage", "clip", "--steps", 2, "--seed", 5)
    result = run("demo", "train", "--work", tmp_path / "work", "--out", tmp_path / "bundle", *asked)
    assert result.exit_code == 0, result.output
    assert "vae  loss 0.5000" in result.stderr
    assert "1/2" in result.stderr
    work = tmp_path / "work"
    assert calls == [(work, ("vae", "clip"), {"vae": 2, "clip": 2}, 5), (work, tmp_path / "bundle")]
    calls.clear()
    result = run("demo", "train", "--work", work, "--stage", "pose", "--add-to", tmp_path / "bundle")
    assert result.exit_code == 0, result.output
    assert calls == [(work, ("pose",), None, 0), ("parts", work, tmp_path / "bundle")]


def test_bundle_import_hands_its_options_on_and_shows_the_licence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("u.pth", "a.pth"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    calls: list[dict[str, Any]] = []
    signature = inspect.signature(import_bundle)

    def record(*args: object, **kwargs: object) -> Any:
        calls.append(signature.bind(*args, **kwargs).arguments)
        return SimpleNamespace(manifest=Manifest("x", licence="CC BY-NC 4.0"))

    monkeypatch.setattr("fashion_rag.bundle_import.import_bundle", record)
    result = run("bundle", "import", "--unet", "u.pth", "--adapter", "a.pth", "--out", "b", "--dtype", "float16")
    assert "CC BY-NC" in result.stdout
    (given,) = calls
    assert (given["unet"], given["adapter"], given["out"]) == (Path("u.pth"), Path("a.pth"), Path("b"))
    assert given["dtype"] is torch.float16
    assert (given["parser"], given["pose"]) == (
        "mattmdjaga/segformer_b2_clothes",
        "usyd-community/vitpose-base-simple",
    )
    shared = ("bundle", "import", "--unet", "u.pth", "--adapter", "a.pth", "--out", "b")
    for options, expected in (
        (("--no-parser",), (None, None)),
        (("--no-pose", "--parser", "mine"), ("mine", None)),
        (("--pose", "other"), ("mattmdjaga/segformer_b2_clothes", "other")),
    ):
        run(*shared, *options)
        assert (calls[-1]["parser"], calls[-1]["pose"]) == expected


@pytest.mark.parametrize(
    ("arguments", "target", "expected"),
    [
        (
            ("serve", "--catalogue", "garments", "--port", 8123, "--api-keys", "/keys.txt", "--backend", "torch"),
            "serve.app.run",
            {
                "bundle": None,
                "catalogue": "garments",
                "host": "127.0.0.1",
                "port": 8123,
                "file": None,
                "traced": False,
                "settings": {"backend": "torch", "api_keys": "/keys.txt"},
            },
        ),
        (
            ("serve", "--config", "serve.yaml"),
            "serve.app.run",
            {
                "bundle": None,
                "catalogue": None,
                "host": "127.0.0.1",
                "port": 8000,
                "file": Path("serve.yaml"),
                "traced": False,
                "settings": {},
            },
        ),
        (
            ("demo", "run", "--out", "a.png", "--keep"),
            "serve.showcase.run",
            {"out": Path("a.png"), "keep": True, "bundle": DEMO_BUNDLE},
        ),
    ],
)
def test_a_command_hands_its_options_on(
    arguments: tuple[object, ...], target: str, expected: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, name = target.rpartition(".")
    signature = inspect.signature(getattr(importlib.import_module(module), name))
    calls: list[dict[str, Any]] = []

    def record(*args: object, **kwargs: object) -> None:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        # These are not options: the socket that is open already, the bar that shows the start, and its process.
        given = ("listener", "progress", "starter")
        calls.append({name: value for name, value in bound.arguments.items() if name not in given})

    monkeypatch.setattr(target, record)
    # Other tests see that files which are named must be there.
    for check in ("check_file", "check_folder", "check_catalogue"):
        monkeypatch.setattr(f"fashion_rag.cli.serving.{check}", lambda *arguments: None)
    assert run(*arguments).exit_code == 0
    assert calls == [expected]


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_cannot_be_is_refused(port: int) -> None:
    assert run("serve", "--port", port).exit_code == 2


def test_export_onnx_tells_how_close_each_network_is(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []

    def export(bundle: Bundle, out: Path, dtype: torch.dtype, progress: Callable[[], None]) -> list[Parity]:
        calls.append((bundle.path, out, dtype))
        progress()
        return [Parity("unet", 1e-6, 2e-6, 1e-4)]

    monkeypatch.setattr("export.to_onnx.export_onnx", export)
    result = run("export", "onnx", DEMO_BUNDLE, "--out", "exported", "--dtype", "float16")
    assert result.exit_code == 0
    assert calls == [(DEMO_BUNDLE, Path("exported"), torch.float16)]
    assert "unet: within 2.0e-06" in result.stdout and "exported: 1 networks, float16" in result.stdout


def test_export_measure_tells_what_was_chosen_and_what_was_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[object, ...]] = []
    (tmp_path / "manifest.json").touch()

    def measure(parts: dict[Any, Any], rows: list[int], num_rounds: int, progress: Callable[[], None]) -> CpuChoice:
        calls.append((list(parts), {opened.folder for opened in parts.values()}, rows, num_rounds))
        progress()
        seconds: Any = {"torch": {2: 1.5, 4: 1.25}, "openvino": {2: 1.0, 4: 0.75}}
        reason = "unet: differs from PyTorch"
        return CpuChoice("openvino", seconds, {"onnx": reason}, [], num_threads=1, num_rounds=num_rounds)

    monkeypatch.setattr("export.cpu_choice.measure_backends", measure)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: calls.append(("threads", number)))
    result = run("export", "measure", DEMO_BUNDLE, tmp_path, "--rows", "2,4", "--rounds", 3, "--threads", 2)
    assert result.exit_code == 0, result.output
    assert calls == [("threads", 2), (["torch", "onnx", "openvino"], {tmp_path}, [2, 4], 3)]
    assert "openvino: networks of an edit 1.000 s with 2 rows a call, 0.750 s with 4 rows a call" in result.stdout
    assert "onnx: refused, unet: differs from PyTorch" in result.stdout
    assert f"{tmp_path}: openvino is taken on this processor" in result.stdout
    assert measured_backend(tmp_path) == "openvino"
    run("export", "measure", DEMO_BUNDLE, tmp_path, "--with-compile")
    assert calls[-1][0] == ["torch", "onnx", "openvino", "compile"]


def test_export_tensorrt_tells_what_was_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    calls: list[tuple[object, ...]] = []
    (tmp_path / "unet.engine").write_bytes(bytes(2_500_000))
    (tmp_path / "manifest.json").touch()

    def build(bundle: Bundle, folder: Path, flavour: Flavour, targets: tuple[str, ...], progress: BuildProgress) -> Any:
        calls.append((bundle.path, folder, flavour.name, targets))
        progress("unet: Building engine", 1, 2)
        progress("unet: Building engine", 2, 2)
        return {"unet": tmp_path / "unet.engine"}

    monkeypatch.setattr("export.to_tensorrt.export_tensorrt", build)
    options = ("--flavour", "tensorrt_rtx", "--architecture", "8.9", "--architecture", "12.0")
    result = run("export", "tensorrt", DEMO_BUNDLE, tmp_path, *options)
    assert result.exit_code == 0
    assert calls == [(DEMO_BUNDLE, tmp_path, "tensorrt_rtx", ("8.9", "12.0"))]
    assert "unet: 2.5 MB" in result.stdout and "for 8.9, 12.0" in result.stdout
    refused = run("export", "tensorrt", DEMO_BUNDLE, tmp_path, "--architecture", "9.0")
    assert refused.exit_code == 1 and "architecture: got 9.0" in refused.stderr
