import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from typer.testing import CliRunner

from fashion_rag.artifacts import sha256
from fashion_rag.bundle import Bundle
from fashion_rag.cli import app
from fashion_rag.denoising.noise_schedule import FINAL, NoiseSchedule, alphas_cumprod, guide
from fashion_rag.denoising.plan import advance, plan
from fashion_rag.errors import ArtifactError, InvalidRequest
from fashion_rag.manifest import Manifest, Student
from fashion_rag.request import PLAIN
from fashion_rag.training.data import Source
from fashion_rag.training.distillation import HUBER, DistillationStage, Phases, jump
from fashion_rag.training.fit import TrainingPlan
from fashion_rag.training.objective import SampleMix
from fashion_rag.training.run import TrainingSettings, train
from fashion_rag.weights import read_state, write_state
from tests.training.edit_stages import EPSILON, V, make_stage

MIX = SampleMix()


def test_phases_end_where_the_student_steps_to() -> None:
    visited, ends = Phases(4, 8).visited(V.for_student())
    assert visited.tolist() == [999, 874, 749, 624, 499, 374, 249, 124, FINAL]
    assert ends.tolist() == [749, 749, 499, 499, 249, 249, FINAL, FINAL, FINAL]
    steps = plan(V.for_student(), 4, 1.0, PLAIN)
    assert [step.t for step in steps] == visited[::2][:4].tolist()


@pytest.mark.parametrize(("num_steps", "teacher_steps", "field"), [(0, 4, "num_steps"), (4, 10, "teacher_steps")])
def test_phases_that_do_not_fit_are_refused(num_steps: int, teacher_steps: int, field: str) -> None:
    with pytest.raises(InvalidRequest, match=field):
        Phases(num_steps, teacher_steps)


@pytest.mark.parametrize("sampler", [EPSILON, V])
def test_a_jump_is_a_step_of_the_edits_own_solver(sampler: NoiseSchedule) -> None:
    sampler = sampler.for_student()
    latents, prediction = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    visited, ends = Phases(4, 4).visited(sampler)
    for number, step in enumerate(plan(sampler, 4, 1.0, PLAIN)):
        start, end = visited[[number] * 2], ends[[number] * 2]
        expected = advance([step, step], latents, prediction, None).latents
        torch.testing.assert_close(jump(sampler, latents, prediction, start, end), expected, rtol=1e-4, atol=1e-4)


class OnePicture(nn.Module):
    """A UNet of a world that has one picture alone, of which it knows the noise in any latents exactly.

    weight: what is predicted of the picture, so that 1 is right.
    """

    def __init__(self, sampler: NoiseSchedule, picture: Tensor, weight: float = 1.0) -> None:
        super().__init__()
        self.sampler, self.picture = sampler, picture
        self.weight = nn.Parameter(torch.tensor(weight))
        self.seen: list[Tensor] = []

    def forward(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
        self.seen.append(t)
        alpha = alphas_cumprod(self.sampler, sample.device)[t][:, None, None, None]
        signal, noise = alpha.sqrt(), (1 - alpha).sqrt()
        x0 = self.weight * self.picture
        epsilon = (sample[:, :4] - signal * x0) / noise
        return epsilon if self.sampler.prediction_type == "epsilon" else signal * epsilon - noise * x0


def make(path: Path, sampler: NoiseSchedule, phases: Phases, right: float = 1.0) -> DistillationStage:
    """Return a stage whose teacher knows its only picture; right: how much of it the student predicts."""
    teacher = make_stage(path, MIX, sampler)
    picture = torch.randn(1, 4, 16, 12, generator=torch.Generator().manual_seed(1))
    teacher.network["unet"] = OnePicture(sampler, picture)
    student: nn.Module = OnePicture(sampler, picture, right)
    return DistillationStage(student, teacher, phases, guidance_scale=3.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", [EPSILON, V])
@pytest.mark.parametrize("num_steps", [1, 4])
def test_a_student_that_knows_the_picture_has_no_loss(
    tiny_bundle: Path, sampler: NoiseSchedule, num_steps: int
) -> None:
    # Whatever step leads to the same picture leads along the same line, so jumps of any length agree.
    stage = make(tiny_bundle, sampler, Phases(num_steps, 8))
    assert stage.loss(np.random.default_rng(0), 32).item() == pytest.approx(0.0, abs=1e-4)
    wrong = make(tiny_bundle, sampler, Phases(num_steps, 8), right=0.5)
    assert wrong.loss(np.random.default_rng(0), 32).item() > 0.01


def test_the_student_alone_learns_and_the_target_is_given(tiny_bundle: Path) -> None:
    stage = make(tiny_bundle, V, Phases(2, 8), right=0.5)
    before = copy.deepcopy(stage.teacher.network.state_dict())
    optimiser = torch.optim.SGD(stage.network.parameters(), lr=0.1)
    for step in range(60):
        optimiser.zero_grad()
        stage.loss(np.random.default_rng(step), 16).backward()
        optimiser.step()
    (weight,) = stage.network.parameters()
    assert weight.item() == pytest.approx(1.0, abs=0.1)
    after = stage.teacher.network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not any(parameter.requires_grad for parameter in stage.teacher.network.parameters())


def test_the_loss_by_hand_where_the_teacher_ends_a_phase(tiny_bundle: Path) -> None:
    # With as many phases as steps of the teacher, the target is the teacher's own guided step.
    stage = make_stage(tiny_bundle, MIX)
    student = copy.deepcopy(stage.network["unet"])
    for parameter in student.parameters():
        parameter.data += 0.01
    distillation = DistillationStage(student, stage, Phases(4, 4), guidance_scale=3.0)  # type: ignore[arg-type]
    calls: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for network in (stage.network["unet"], student):
        network.register_forward_hook(lambda module, inputs, output: calls.append((*inputs, output)))
    torch.manual_seed(0)
    loss = distillation.loss(np.random.default_rng(0), 5)
    (sample, t, texts, output), _, (own_sample, own_t, own_texts, own_output) = calls
    assert torch.equal(t, torch.cat([own_t, own_t]))
    assert torch.equal(sample[5:], own_sample)
    assert torch.equal(texts[5:], own_texts)
    assert torch.equal(texts[:5], stage.empty_prompt.expand(5, -1, -1))
    assert torch.equal(sample[:5, :9], own_sample[:, :9])
    assert not sample[:5, 9:].any()
    end = torch.where(own_t == 249, FINAL, own_t - 250)
    start = own_sample[:, :4]
    target = jump(distillation.sampler, start, guide(output[:5], output[5:], 3.0), own_t, end)
    reached = jump(distillation.sampler, start, own_output, own_t, end)
    expected = ((reached - target).square() + HUBER**2).sqrt() - HUBER
    torch.testing.assert_close(loss, expected.mean())


@pytest.fixture
def settings(source: Source, tiny_bundle: Path, tmp_path: Path) -> TrainingSettings:
    plan = TrainingPlan(4, batch_size=4, learning_rate=1e-3, precision="float32", save_every_s=-1)
    return TrainingSettings(
        tiny_bundle, source, tmp_path / "work", tmp_path / "out", plan, MIX, sheet_every=2, phases=Phases(2, 8)
    )


def test_a_student_is_added_and_nothing_else_changes(settings: TrainingSettings) -> None:
    settings = replace(settings, mix=SampleMix((0.0, 1.0, 0.0, 0.0)))
    bundle = train(settings, num_processes=1)
    base = Bundle.open(settings.base)
    changed = set()
    for path in settings.out.rglob("*"):
        name = path.relative_to(settings.out)
        if path.is_file() and not ((settings.base / name).exists() and sha256(settings.base / name) == sha256(path)):
            changed.add(str(name))
    assert changed == {
        "manifest.json",
        "unet_turbo/config.json",
        "unet_turbo/diffusion_pytorch_model.safetensors",
    }
    assert bundle.manifest == replace(base.manifest, student=Student(base.fingerprint("unet"), 2))
    average = torch.load(settings.work / "unet_turbo.pt", weights_only=True)["average"]
    student = bundle.load_student().state_dict()
    assert student.keys() == average.keys()
    assert all(torch.equal(student[key], average[key]) for key in student)
    taught = base.load_unet().state_dict()
    assert not all(torch.equal(student[key], taught[key]) for key in student)
    log = EventAccumulator(str(settings.work / "logs"))
    log.Reload()
    assert [event.step for event in log.Images("unet_turbo/samples")] == [2, 4]
    checked = CliRunner().invoke(app, ["bundle", "check", str(settings.out)])
    assert "student: loaded" in checked.output


def test_another_kind_of_training_is_refused_in_the_same_folder(settings: TrainingSettings) -> None:
    settings = replace(settings, mix=SampleMix((0.0, 1.0, 0.0, 0.0)), sheet_every=0)
    train(settings, num_processes=1)
    with pytest.raises(ArtifactError, match="holds a training of another student"):
        train(replace(settings, phases=Phases(4, 8)), num_processes=1)
    with pytest.raises(ArtifactError, match="holds a training of another student"):
        train(replace(settings, phases=None), num_processes=1)


def test_a_student_of_another_teacher_is_refused(settings: TrainingSettings, tmp_path: Path) -> None:
    settings = replace(settings, mix=SampleMix((0.0, 1.0, 0.0, 0.0)), sheet_every=0)
    train(settings, num_processes=1)
    weights = settings.out / "unet" / "diffusion_pytorch_model.safetensors"
    state = read_state(weights)
    state["conv_in.bias"] += 1
    write_state(weights, state)
    with pytest.raises(ArtifactError, match="so distil it again"):
        Bundle.open(settings.out).load_student()
    # A bundle that is trained on leaves its student behind.
    trained = train(
        replace(settings, base=settings.out, work=tmp_path / "on", out=tmp_path / "trained", phases=None),
        num_processes=1,
    )
    assert trained.manifest.student is None
    assert not (trained.path / "unet_turbo").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_inference_steps": 0}, "takes 0 steps"),
        ({"solver": "unipc"}, "only ddim"),
        ({"guidance_scale": 7.5}, "only ddim and guidance 1"),
        ({"colour": "red"}, "must have the keys"),
    ],
)
def test_a_damaged_description_of_a_student_is_refused(
    tiny_bundle: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    raw = json.loads((tiny_bundle / "manifest.json").read_text())
    raw["student"] = {"teacher": "0" * 64} | change
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(ArtifactError, match=message):
        Manifest.read(path)


def test_a_student_that_is_missing_or_of_another_size_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    replace(Bundle.open(bundle).manifest, student=Student("0" * 64)).write(bundle / "manifest.json")
    with pytest.raises(ArtifactError, match="no such file, though the manifest has a student"):
        Bundle.open(bundle)
    shutil.copytree(bundle / "unet", bundle / "unet_turbo")
    Bundle.open(bundle)
    config = json.loads((bundle / "unet" / "config.json").read_text()) | {"cross_attention_dim": 7}
    (bundle / "unet_turbo" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="cross_attention_dim is 7"):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    ("options", "refusal"), [(["--student-steps", "3"], "teacher_steps: got 40"), (["--steps", "0"], "steps: got 0")]
)
def test_options_that_do_not_fit_are_refused(source: Source, tmp_path: Path, options: list[str], refusal: str) -> None:
    command = ["distill", str(source.root), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*command, *options])
    assert result.exit_code == 2
    assert refusal in result.output
