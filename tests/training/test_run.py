"""Tests of a whole training on a few paper dolls: what changes, resuming, several processes, incomplete bases."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from fashion_rag.artifacts import sha256
from fashion_rag.bundle import Bundle
from fashion_rag.cli import app
from fashion_rag.errors import ArtifactError, InvalidRequest
from fashion_rag.models.unet import widen_conv_in
from fashion_rag.training import memory, run, watch
from fashion_rag.training.base import open_base
from fashion_rag.training.data import Source
from fashion_rag.training.fit import TrainingPlan
from fashion_rag.training.memory import bytes_per_process
from fashion_rag.training.objective import SampleMix
from fashion_rag.training.run import TrainingSettings, even_share, train
from fashion_rag.weights import read_state, write_state
from tests.tiny import make_unet

PLAN = TrainingPlan(
    6, batch_size=4, learning_rate=1e-3, num_parts=2, warmup_steps=2, precision="float32", save_every_s=-1
)


@pytest.fixture
def settings(source: Source, tiny_bundle: Path, tmp_path: Path) -> TrainingSettings:
    return TrainingSettings(tiny_bundle, source, tmp_path / "work", tmp_path / "out", PLAN, SampleMix(), sheet_every=4)


def saved(settings: TrainingSettings) -> dict[str, Any]:
    return torch.load(settings.work / "unet.pt", weights_only=True)  # type: ignore[no-any-return]


def assert_same_training(first: TrainingSettings, second: TrainingSettings) -> None:
    for key in ("network", "average"):
        a, b = saved(first)[key], saved(second)[key]
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    a, b = saved(first)["optimiser"]["state"], saved(second)["optimiser"]["state"]
    assert all(torch.equal(a[number][name], b[number][name]) for number in a for name in a[0])


def test_a_trained_bundle_is_not_marked_as_untrained(settings: TrainingSettings, tmp_path: Path) -> None:
    base = Path(shutil.copytree(settings.base, tmp_path / "untrained"))
    replace(Bundle.open(base).manifest, untrained=True).write(base / "manifest.json")
    bundle = train(replace(settings, base=base, sheet_every=0), num_processes=1)
    assert not bundle.manifest.untrained and Bundle.open(base).manifest.untrained


def test_only_unet_and_adapter_change(settings: TrainingSettings, tiny_bundle: Path) -> None:
    bundle = train(settings, num_processes=1)
    assert bundle.path == settings.out and bundle.manifest == Bundle.open(tiny_bundle).manifest
    changed = {
        str(path.relative_to(tiny_bundle))
        for path in tiny_bundle.rglob("*")
        if path.is_file() and sha256(path) != sha256(settings.out / path.relative_to(tiny_bundle))
    }
    assert changed == {"unet/diffusion_pytorch_model.safetensors", "inversion_adapter/model.safetensors"}
    average = saved(settings)["average"]
    for part, prefix in (("unet/diffusion_pytorch_model", "unet.unet."), ("inversion_adapter/model", "adapter.")):
        for name, tensor in read_state(settings.out / f"{part}.safetensors").items():
            assert torch.equal(tensor, average[prefix + name])


def test_resumed_bit_for_bit(settings: TrainingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "REPORT_EVERY_S", -1.0)

    # The learning rate depends on the number of all steps, so the first half is a whole training that is cut off.
    def cut_off(stage: str, step: int, num_steps: int, loss: float) -> None:
        if stage == "unet" and step == 4:
            raise KeyboardInterrupt

    train(settings, num_processes=1)
    halves = replace(settings, work=tmp_path / "halves")
    with pytest.raises(KeyboardInterrupt):
        train(halves, num_processes=1, report=cut_off)
    assert saved(halves)["step"] == 3
    train(halves, num_processes=1)
    assert_same_training(settings, halves)


def test_two_processes_train_as_one(settings: TrainingSettings, tmp_path: Path) -> None:
    train(settings, num_processes=1)
    shared = replace(settings, work=tmp_path / "shared")
    train(shared, num_processes=2)
    assert_same_training(settings, shared)


def test_what_is_logged(settings: TrainingSettings) -> None:
    train(settings, num_processes=1)
    log = EventAccumulator(str(settings.work / "logs"))
    log.Reload()
    assert set(log.Tags()["scalars"]) == {
        f"unet/{name}" for name in ("loss", "learning_rate", "gradient_norm", "images_per_s")
    }
    assert [event.step for event in log.Scalars("unet/loss")] == [6]
    sheets = log.Images("unet/samples")
    assert [event.step for event in sheets] == [4, 6]
    assert (sheets[0].height, sheets[0].width) == (4 * 64, 3 * 48)


def test_another_base_is_refused_in_the_same_folder(settings: TrainingSettings, tmp_path: Path) -> None:
    train(settings, num_processes=1)
    another_base = replace(settings, base=settings.out)
    with pytest.raises(ArtifactError, match="holds a training of another base"):
        train(another_base, num_processes=1)
    with pytest.raises(ArtifactError, match="holds a training of another seed"):
        train(replace(settings, seed=1), num_processes=1)


def test_processes_that_cannot_share_are_refused_first(settings: TrainingSettings) -> None:
    with pytest.raises(InvalidRequest, match="num_parts"):
        train(replace(settings, plan=replace(PLAN, num_parts=3)), num_processes=2)
    assert not list(settings.work.glob("cache-*"))


@pytest.mark.parametrize(("num_parts", "most", "expected"), [(0, 3, 2), (0, 16, 4), (2, 4, 2), (1, 4, 1)])
def test_as_many_processes_as_can_share(num_parts: int, most: int, expected: int) -> None:
    assert even_share(replace(PLAN, num_parts=num_parts), most) == expected


def test_no_more_processes_are_started_than_fit(settings: TrainingSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def note(job: object, num_processes: int, folder: Path, report: object) -> None:
        started.append(num_processes)

    monkeypatch.setattr(run, "run_processes", note)
    monkeypatch.setattr(run.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    four = replace(settings, out=settings.base, plan=replace(PLAN, num_parts=4))
    needed = settings.bytes_per_process()
    for available, expected in ((5 * needed, 4), (3 * needed, 2), (needed, 1)):
        monkeypatch.setattr(run, "available_bytes", lambda available=available: available)
        train(four)
        assert started.pop() == expected
    monkeypatch.setattr(run, "available_bytes", lambda: needed - 1)
    with pytest.raises(InvalidRequest, match=r"processes: got 1; each takes .* GB .* are available; use a machine"):
        train(four)
    monkeypatch.setattr(run, "available_bytes", lambda: 2 * needed)
    with pytest.raises(InvalidRequest, match=r"processes: got 4; .* use --processes 2, or a machine"):
        train(four, num_processes=4)
    assert started == []


def test_what_a_process_takes_is_what_training_makes(settings: TrainingSettings) -> None:
    bundle = Bundle.open(settings.base)
    trained = [bundle.load_unet(), bundle.load_garment_encoder().network.adapter]
    numbers = [
        sum(weight.numel() for part in parts for weight in part.parameters())
        for parts in (trained, [bundle.load_prompt_encoder()], [bundle.load_vae()])
    ]
    assert settings.bytes_per_process() == 20 * numbers[0] + 4 * (numbers[1] + numbers[2])
    assert replace(settings, sheet_every=0).bytes_per_process() == 20 * numbers[0] + 4 * numbers[1]


def test_a_base_that_lacks_an_adapter_counts_the_one_it_gets(inpainting_base: Path, tmp_path: Path) -> None:
    completed = open_base(inpainting_base, tmp_path / "work", seed=0)
    narrow, wide = make_unet(in_channels=9).conv_in.weight.numel(), make_unet().conv_in.weight.numel()
    expected = bytes_per_process(completed.path, True) - 20 * (wide - narrow)
    assert bytes_per_process(inpainting_base, True) == expected


@pytest.mark.parametrize(("limit", "expected"), [("max", 2_048_000), ("1000000", 700_000), ("9000000", 2_048_000)])
def test_a_container_has_the_memory_of_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, expected: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 2000 kB\n")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("400000\n")
    (tmp_path / "memory.stat").write_text("anon 300000\ninactive_file 100000\n")
    monkeypatch.setattr(memory, "MEMORY_FILE", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.available_bytes() == expected


@pytest.fixture
def inpainting_base(tiny_bundle: Path, tmp_path: Path) -> Path:
    """Return a bundle with the UNet of an inpainting model, and without an adapter."""
    base = shutil.copytree(tiny_bundle, tmp_path / "base")
    shutil.rmtree(base / "inversion_adapter")
    unet = make_unet(in_channels=9)
    unet.save_config(base / "unet")
    write_state(base / "unet" / "diffusion_pytorch_model.safetensors", unet.state_dict())
    return base


def test_an_inpainting_base_is_widened_and_gets_an_adapter(inpainting_base: Path, tmp_path: Path) -> None:
    bundle = open_base(inpainting_base, tmp_path / "work", seed=3)
    narrow = read_state(inpainting_base / "unet" / "diffusion_pytorch_model.safetensors")
    wide = bundle.load_unet().unet.state_dict()
    expected = make_unet(in_channels=9)
    expected.load_state_dict(narrow)
    widen_conv_in(expected)
    assert all(torch.equal(wide[name], tensor) for name, tensor in expected.state_dict().items())
    config = json.loads((bundle.path / "inversion_adapter" / "config.json").read_text())
    assert config == {"hidden_dim": 64, "text_width": 16, "num_pseudo_words": 4}
    again = open_base(inpainting_base, tmp_path / "other", seed=3)
    assert again.fingerprint("inversion_adapter") == bundle.fingerprint("inversion_adapter")
    another_seed = open_base(inpainting_base, tmp_path / "other", seed=4)
    assert another_seed.fingerprint("inversion_adapter") != bundle.fingerprint("inversion_adapter")


def test_an_inpainting_base_can_be_trained(settings: TrainingSettings, inpainting_base: Path) -> None:
    bundle = train(replace(settings, base=inpainting_base), num_processes=1)
    bundle.load_unet()
    bundle.load_garment_encoder()


def test_a_whole_base_is_not_copied(tiny_bundle: Path, tmp_path: Path) -> None:
    assert open_base(tiny_bundle, tmp_path, seed=0).path == tiny_bundle


def test_a_base_without_a_vae_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_bundle, tmp_path / "base")
    shutil.rmtree(base / "vae")
    with pytest.raises(ArtifactError, match="vae"):
        open_base(base, tmp_path / "work", seed=0)


def test_the_command(source: Source, tiny_bundle: Path, tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "trained"
    arguments: list[object] = [
        "train", source.root, "--work", work, "--out", out, "--bundle", tiny_bundle, "--retrieval", source.retrieval,
        "--steps", 2, "--batch-size", 2, "--garment-shares", "0,0,.5,.5", "--name", "mine", "--processes", 1,
    ]  # fmt: skip
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert f"{out}: written" in result.output
    assert Bundle.open(out).manifest.name == "mine"
    without = [argument for argument in arguments if argument not in ("--retrieval", source.retrieval)]
    without[without.index(work)] = tmp_path / "other"
    result = CliRunner().invoke(app, [str(argument) for argument in without])
    assert result.exit_code == 2
    assert "the 1 garments that a sample has" in result.stderr
