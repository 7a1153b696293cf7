import pytest
import torch
from torch import Tensor, nn

from fashion_rag.models.autoencoder import VAE, fit_preview
from tests.models import toy


class FixedMoments(nn.Module):
    """A module in place of an encoder, as a compiled one would be, that returns fixed moments."""

    def __init__(self, mean: float, logvar: float) -> None:
        super().__init__()
        self.values = torch.tensor([mean] * 4 + [logvar] * 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.values[None, :, None, None].expand(len(image), 8, 2, 2)


@pytest.fixture
def vae() -> VAE:
    return toy.vae()


@torch.inference_mode()
def test_encode_is_diffusers_posterior_sample(vae: VAE) -> None:
    image = torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(7))
    posterior = toy.autoencoder().encode(image).latent_dist
    expected = posterior.sample(torch.Generator().manual_seed(7)) * 0.3
    assert vae.downsampling == 4
    torch.testing.assert_close(vae.encode(image, noise), expected)
    assert (vae.encode(image, noise) - posterior.mean * 0.3).abs().max() > 0.01


@torch.inference_mode()
def test_decode_is_diffusers_decode(vae: VAE) -> None:
    latents = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(vae.decode(latents), toy.autoencoder().decode(latents / 0.3).sample)


@torch.inference_mode()
def test_strides_of_the_picture_do_not_matter(vae: VAE) -> None:
    image = torch.rand(1, 3, 32, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.zeros(1, 4, 8, 6)
    assert torch.equal(vae.encode(image.to(memory_format=torch.channels_last), noise), vae.encode(image, noise))


@pytest.mark.parametrize(("logvar", "clamped"), [(1.0, 1.0), (50.0, 20.0), (-90.0, -30.0)])
def test_a_stand_in_encoder_is_used_and_its_log_variance_clamped(vae: VAE, logvar: float, clamped: float) -> None:
    vae.encoder = FixedMoments(mean=2.0, logvar=logvar)
    latents = vae.encode(torch.zeros(1, 3, 8, 8), torch.ones(1, 4, 2, 2))
    expected = 0.3 * (2.0 + torch.tensor(clamped / 2).exp())
    torch.testing.assert_close(latents, expected.expand(1, 4, 2, 2))


class MeanColours(nn.Module):
    """An encoder whose latents are the mean colours of blocks plus a half, and a product of two of them."""

    def forward(self, image: Tensor) -> Tensor:
        colours = nn.functional.avg_pool2d(image, 4)
        mean = torch.cat([colours + 0.5, colours[:, :1] * colours[:, 1:2]], dim=1)
        return torch.cat([mean, torch.full_like(mean, 5.0)], dim=1)


@pytest.mark.parametrize("image_size", [(32, 24), (24, 320)])
def test_a_preview_maps_scaled_latents_to_colours(vae: VAE, image_size: tuple[int, int]) -> None:
    vae.encoder = MeanColours()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    preview = torch.tensor(fit_preview(vae, image_size))
    expected = torch.cat([torch.eye(3) / 0.3, torch.zeros(1, 3), torch.full((1, 3), -0.5)])
    torch.testing.assert_close(preview, expected, rtol=0, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), state)
