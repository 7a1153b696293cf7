"""The training makes a bundle that edits, here with two steps for each stage."""

from pathlib import Path

import pytest
import torch

from fashion_rag.bundle import Bundle
from fashion_rag.demo.model import cases, packaging, photo_cases, train
from fashion_rag.demo.model.evaluate import NUM_PAINTED, evaluate
from fashion_rag.errors import ArtifactError, InvalidRequest


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "CHUNK", 6)
        patch.setattr(photo_cases, "CHUNK", 6)
        plans = {name: train.dataclasses.replace(plan, batch_size=6) for name, plan in train.PLANS.items()}
        patch.setattr(train, "PLANS", plans)
        reported: list[str] = []
        train.train(
            folder,
            num_steps=dict.fromkeys(train.STAGES, 2),
            num_cases=12,
            num_photos=6,
            num_processes=1,
            report=lambda stage, step, num_steps, loss: reported.append(stage),
        )
    assert {"cases", "photos", *train.STAGES} <= set(reported)
    return folder


def test_a_trained_folder_becomes_a_bundle_that_loads(work: Path, tmp_path: Path) -> None:
    bundle = packaging.package(work, tmp_path / "bundle")
    assert Bundle.open(tmp_path / "bundle").manifest == bundle.manifest
    size = sum(path.stat().st_size for path in bundle.path.rglob("*.safetensors"))
    assert size <= 18e6
    for part in ("parser", "pose"):
        assert (bundle.path / part / "model.safetensors").is_file()
    vae = bundle.load_vae()
    assert vae.scaling_factor > 0


def test_the_table_of_an_untrained_bundle(work: Path, tmp_path: Path) -> None:
    bundle = packaging.package(work, tmp_path / "bundle")
    painted: list[None] = []
    report = evaluate(bundle.path, num_cases=6, steps=1, progress=lambda: painted.append(None))
    assert len(painted) == NUM_PAINTED * 6
    rows = {row.name: row for row in report.rows}
    assert rows["the truth"].both == 1.0
    assert rows["one garment"].both < 0.5
    assert 0 <= report.retrieval_at_1 <= report.retrieval_at_3 <= 1
    again = evaluate(bundle.path, num_cases=6, steps=1)
    assert again.as_dict() == report.as_dict()


def test_an_unknown_stage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="stage: got 'gan'"):
        train.train(tmp_path, stages=["gan"])


@pytest.mark.parametrize(("before", "stage"), [("small_parser", "middle_parser"), ("middle_parser", "parser")])
def test_the_parser_goes_on_with_the_weights_of_the_stage_before(work: Path, before: str, stage: str) -> None:
    trainer = train._Trainer(work, (12, 6), 0, torch.device("cpu"))
    begun = trainer.stage(stage)
    trained = torch.load(work / f"{before}.pt", weights_only=True)["average"]
    for name, weight in begun.network.state_dict().items():
        torch.testing.assert_close(trained[name], weight, rtol=0, atol=0)
    assert begun.size > trainer.stage(before).size


def test_the_stages_of_photos_need_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo_cases, "CHUNK", 2)
    monkeypatch.setattr(train, "draw_cases", None)
    plans = {name: train.dataclasses.replace(plan, batch_size=2) for name, plan in train.PLANS.items()}
    monkeypatch.setattr(train, "PLANS", plans)
    train.train(tmp_path, train.PHOTO_STAGES, dict.fromkeys(train.PHOTO_STAGES, 1), num_photos=2, num_processes=1)
    assert {path.stem for path in tmp_path.glob("*.pt")} == set(train.PHOTO_STAGES)


def test_packaging_without_weights_names_the_stage(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="'clip' has not been trained"):
        packaging.package(tmp_path, tmp_path / "bundle")
