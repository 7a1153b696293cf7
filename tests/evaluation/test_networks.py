"""Networks are loaded from local files of random weights: nothing is downloaded, and only tensors are read."""

import pickle
import urllib.request
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from fashion_rag.errors import ArtifactError
from fashion_rag.evaluation.networks import Networks, load_inception, load_lpips

PICTURES = [Image.new("RGB", (48, 64), colour) for colour in ("red", "blue", "green")]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("something is being fetched")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", refuse)


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    class Empty(FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, *arguments: object) -> None:
            pass

    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    torch.save(Empty("inception-v3-compat", ["2048"], feature_extractor_weights_path=path).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def alexnet() -> torch.nn.Module:
    torch.manual_seed(0)
    return torchvision.models.alexnet(weights=None)


@pytest.fixture(scope="module")
def lpips_weights(tmp_path_factory: pytest.TempPathFactory, alexnet: torch.nn.Module) -> Path:
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save({name: each for name, each in alexnet.state_dict().items() if name.startswith("features")}, path)
    return path


@pytest.fixture(scope="module")
def networks(tiny_bundle: Path, inception_weights: Path, lpips_weights: Path) -> Networks:
    return Networks.load(tiny_bundle / "retrieval", inception_weights, lpips_weights)


def test_inception_has_the_files_weights(networks: Networks, inception_weights: Path) -> None:
    assert networks.inception is not None
    wanted = torch.load(inception_weights, weights_only=True)
    for name, weight in networks.inception.state_dict().items():
        assert torch.equal(weight, wanted[name])
    vectors = networks.inception_vectors(PICTURES)
    assert vectors.shape == (3, 2048) and vectors.dtype == np.float64
    np.testing.assert_allclose(vectors[1:2], networks.inception_vectors(PICTURES[1:2]), atol=1e-4)


def test_lpips_is_the_packages_own_on_the_files_weights(networks: Networks, alexnet: torch.nn.Module) -> None:
    assert networks.lpips is not None
    distances = networks.perceptual_distances(PICTURES, PICTURES[::-1])
    assert distances[1] == 0 < distances[0]
    with pytest.warns(UserWarning):  # as the package asks torchvision in an old way
        own = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    layers = [layer for part in range(1, 6) for layer in getattr(own.net, f"slice{part}")]
    for layer, wanted in zip(layers, alexnet.features, strict=False):
        if hasattr(layer, "weight"):
            layer.load_state_dict(wanted.state_dict())
    red, green = (torch.from_numpy(np.array(each)).permute(2, 0, 1)[None] / 127.5 - 1 for each in PICTURES[::2])
    assert distances[0] == pytest.approx(float(own(red, green).detach()), rel=1e-5)


def test_safetensors_will_do(tmp_path: Path, lpips_weights: Path) -> None:
    save_file(torch.load(lpips_weights, weights_only=True), tmp_path / "alexnet.safetensors")
    load_lpips(tmp_path / "alexnet.safetensors")


@pytest.mark.parametrize("load", [load_inception, load_lpips])
def test_a_file_that_does_not_fit_is_named(tmp_path: Path, load) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "weights.pth"
    with pytest.raises(ArtifactError, match=r"weights\.pth"):
        load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ArtifactError, match=r"weights\.pth"):
        load(path)
    torch.save({"features.0.weight": torch.zeros(2)}, path)
    with pytest.raises(ArtifactError, match=r"weights\.pth"):
        load(path)


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('a file was run')",)


@pytest.mark.parametrize("load", [load_inception, load_lpips])
def test_a_file_that_would_run_something_is_refused(tmp_path: Path, load) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "weights.pth"
    torch.save({"features.0.weight": Trap()}, path)
    with pytest.raises(ArtifactError, match="not a readable file of weights"):
        load(path)
    path.write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(ArtifactError, match="not a readable file of weights"):
        load(path)


def test_without_files_there_is_only_clip(tiny_bundle: Path) -> None:
    networks = Networks.load(tiny_bundle / "retrieval")
    assert networks.inception is None and networks.lpips is None
    assert networks.clip.encode_images(PICTURES).shape == (3, networks.clip.dim)
