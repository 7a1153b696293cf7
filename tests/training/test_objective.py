"""Tests of the loss of UNet and adapter: targets, weights, how often things are drawn, and that the loss falls."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fashion_rag.denoising.noise_schedule import NoiseSchedule, alphas_cumprod
from fashion_rag.errors import InvalidRequest
from fashion_rag.training.fit import TrainingPlan, TrainingProgress, fit
from fashion_rag.training.objective import EditStage, SampleMix, noisy_and_target, snr_weights
from tests.training.edit_stages import CPU, EPSILON, NUM_SAMPLES, V, make_stage


@pytest.mark.parametrize("t", [0, 400, 999])
def test_noise_and_targets_by_hand(t: int) -> None:
    clean, noise = torch.full((1, 4, 2, 2), 2.0), torch.full((1, 4, 2, 2), -1.0)
    alpha = alphas_cumprod(EPSILON, CPU)[t].item()
    a, b = math.sqrt(alpha), math.sqrt(1 - alpha)
    for sampler, expected in ((EPSILON, -1.0), (V, -a - 2 * b)):
        noisy, target = noisy_and_target(sampler, clean, noise, torch.tensor([t]))
        torch.testing.assert_close(noisy, torch.full((1, 4, 2, 2), 2 * a - b))
        torch.testing.assert_close(target, torch.full((1, 4, 2, 2), expected))


def test_min_snr_weights_by_hand() -> None:
    t = torch.tensor([0, 999])
    alpha = alphas_cumprod(EPSILON, CPU)[t].double()
    clean, noisy = (alpha / (1 - alpha)).tolist()
    assert clean > 5 > 1 > noisy
    assert snr_weights(EPSILON, t, 5.0).tolist() == pytest.approx([5 / clean, 1.0], rel=1e-3)
    assert snr_weights(V, t, 5.0).tolist() == pytest.approx([5 / (clean + 1), noisy / (noisy + 1)], rel=1e-3)


class Answer(nn.Module):
    """A UNet that predicts zero, and keeps its inputs."""

    def forward(self, sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
        self.sample, self.t, self.prompt_embeds = sample, t, prompt_embeds
        return torch.zeros_like(sample[:, :4])


@pytest.mark.parametrize("sampler", [EPSILON, V])
@pytest.mark.parametrize("outside_weight", [1.0, 0.1])
@pytest.mark.parametrize("max_snr", [None, 5.0])
def test_the_loss_by_hand(
    tiny_bundle: Path, sampler: NoiseSchedule, outside_weight: float, max_snr: float | None
) -> None:
    stage = make_stage(tiny_bundle, SampleMix(outside_weight=outside_weight, max_snr=max_snr), sampler)
    unet = stage.network["unet"] = Answer()
    torch.manual_seed(5)
    loss = stage.loss(np.random.default_rng(3), 4)

    # The same draws in the same order: rows, then timesteps, and three tensors of normal numbers.
    rng = np.random.default_rng(3)
    rows, t = rng.integers(NUM_SAMPLES, size=4), torch.from_numpy(rng.integers(1000, size=4))
    assert torch.equal(unet.t, t)
    torch.manual_seed(5)
    draws = [torch.randn(4, 4, 16, 12) for _ in range(3)]
    latents = []
    for moments, draw in zip((stage.data.moments, stage.data.masked_moments), draws, strict=False):
        mean, logvar = torch.from_numpy(moments[rows]).float().chunk(2, dim=1)
        latents.append(0.5 * (mean + (logvar / 2).exp() * draw))
    noisy, target = noisy_and_target(sampler, latents[0], draws[2], t)
    torch.testing.assert_close(unet.sample[:, :4], noisy)
    torch.testing.assert_close(unet.sample[:, 5:9], latents[1])
    mask = torch.from_numpy(stage.data.mask[rows]).float()
    torch.testing.assert_close(unet.sample[:, 4:5], mask)
    weight = torch.where(mask == 1, 1.0, outside_weight).expand(4, 4, 16, 12)
    level = snr_weights(sampler, t, max_snr)[:, None, None, None] if max_snr else 1.0
    torch.testing.assert_close(loss, (target**2 * weight * level).sum() / weight.sum())


def test_text_and_pose_are_dropped_together_and_as_often_as_asked(tiny_bundle: Path) -> None:
    stage = make_stage(tiny_bundle, SampleMix(uncond_share=0.3))
    unet = stage.network["unet"] = Answer()
    stage.loss(np.random.default_rng(0), 1000)
    no_pose = (unet.sample[:, 9:] == 0).all(dim=(1, 2, 3))
    no_text = (unet.prompt_embeds == stage.empty_prompt).all(dim=(1, 2))
    assert torch.equal(no_pose, no_text)
    assert 0.25 < no_pose.float().mean() < 0.35
    assert (unet.sample[:, 4:9] != 0).any(dim=(1, 2, 3)).all()


def test_garments_are_shown_as_often_as_asked(tiny_bundle: Path) -> None:
    stage = make_stage(tiny_bundle, SampleMix(garment_shares=(0.1, 0.4, 0.2, 0.3), worn_share=0.8))
    rng = np.random.default_rng(0)
    shown = [stage.draw_garments(rng, 1).tolist() for _ in range(3000)]
    counts = np.bincount([len(garments) for garments in shown]) / len(shown)
    np.testing.assert_allclose(counts, [0.1, 0.4, 0.2, 0.3], atol=0.03)
    alone = [garments[0] for garments in shown if len(garments) == 1]
    assert set(alone) == {3, 4}
    assert np.mean(np.array(alone) == 3) == pytest.approx(0.8, abs=0.04)
    orders = {tuple(garments) for garments in shown if len(garments) == 3}
    assert len(orders) == 6 and all(sorted(order) == [3, 4, 5] for order in orders)


def test_pseudo_words_stand_garment_after_garment(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make_stage(tiny_bundle, SampleMix())
    stage.network.eval()
    shown = [np.array([4, 3]), np.array([], np.int64), np.array([8])]
    draws = iter(shown)
    monkeypatch.setattr(stage, "draw_garments", lambda rng, row: next(draws))
    stage.prompts.text_encoder = nn.Identity()
    embeds = stage.prompt_embeds(np.random.default_rng(0), np.array([1, 0, 2]))
    words = stage.network["adapter"](torch.from_numpy(stage.data.hidden[np.array([4, 3, 8])]).float())
    for row, expected in ((0, words[:2].flatten(0, 1)), (2, words[2])):
        # The placeholders come after the begin token and the template's words.
        start = next(i for i in range(77) if torch.allclose(embeds[row, i], expected[0], atol=1e-6))
        torch.testing.assert_close(embeds[row, start : start + len(expected)], expected)


@pytest.mark.parametrize("caption_share", [0.0, 0.4])
def test_templates_are_mixed_as_asked(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, caption_share: float) -> None:
    stage = make_stage(tiny_bundle, SampleMix(garment_shares=(0.2, 0.8, 0, 0), caption_share=caption_share))
    texts: list[str] = []
    monkeypatch.setattr(stage, "prompts", lambda given, words: texts.extend(given))
    stage.prompt_embeds(np.random.default_rng(0), np.zeros(1000, np.int64))
    with_garment = [text for text in texts if "$" in text]
    assert len(with_garment) / len(texts) == pytest.approx(0.8, abs=0.04)
    captioned = [text for text in with_garment if text.startswith(("red. ", "blue. "))]
    assert len(captioned) / len(with_garment) == pytest.approx(caption_share, abs=0.05)
    without = [text for text in texts if "$" not in text]
    assert {text.split()[-1] for text in without} == {"red", "blue"}


def test_it_learns_and_only_what_should(tiny_bundle: Path, tmp_path: Path) -> None:
    stage = make_stage(tiny_bundle, SampleMix())
    losses: list[float] = []

    def watch(progress: TrainingProgress, average: nn.Module) -> None:
        losses.append(progress.loss)

    text_before = {key: tensor.clone() for key, tensor in stage.prompts.state_dict().items()}
    before = {key: tensor.clone() for key, tensor in stage.network.state_dict().items()}
    plan = TrainingPlan(60, batch_size=16, learning_rate=5e-3, warmup_steps=5, precision="float32")
    fit(stage, plan, tmp_path, seed=0, watch=watch)
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    changed = {key for key, tensor in stage.network.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed == set(before)
    assert all(torch.equal(tensor, text_before[key]) for key, tensor in stage.prompts.state_dict().items())


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_gives_nearly_the_same_loss(tiny_bundle: Path, precision: Any) -> None:
    full = make_stage(tiny_bundle, SampleMix())
    half = EditStage(full.network, full.data, full.prompts, full.sampler, full.mix, CPU, precision)
    losses = []
    for stage in (full, half):
        torch.manual_seed(0)
        stage.network.eval()
        losses.append(stage.loss(np.random.default_rng(0), 8).item())
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_more_garments_than_there_are_is_refused(tiny_bundle: Path) -> None:
    stage = make_stage(tiny_bundle, SampleMix())
    data = replace(stage.data, garments=stage.data.garments[:, :1])
    with pytest.raises(InvalidRequest, match="no more than the 1 garments"):
        EditStage(stage.network, data, stage.prompts, stage.sampler, SampleMix(), CPU)


@pytest.mark.parametrize(
    "wrong", [{"garment_shares": (0.5, 0.6, 0, 0)}, {"garment_shares": (0, 1)}, {"uncond_share": 1.1}]
)
def test_shares_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        SampleMix(**wrong)
