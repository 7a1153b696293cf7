"""Tests of exported networks that OpenVINO runs: in float32 within ONNX Runtime's tolerance, and in bfloat16."""

from pathlib import Path

import pytest
import torch

from export.backend import has_bfloat16
from export.modules import module_specs
from export.onnx_files import onnx_path
from export.openvino_module import OpenVinoModule, load_openvino
from export.parity import outputs, random_inputs
from fashion_rag.bundle import Bundle
from fashion_rag.errors import ArtifactError, FashionRAGError

NAMES = ("unet", "unet_shallow", "vae_encoder", "vae_decoder", "text_encoder", "garment_encoder")
# The root mean square of the differences in bfloat16, as a share of the output's spread. OpenVINO also rounds the
# angles of the timestep embedding, which moves the random UNet of these tests by 6e-2. The demo bundle's networks
# differ by at most 1.5e-2, and in PyTorch's own bfloat16 by at most 1.2e-2.
BFLOAT16_TOLERANCE = 0.1


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def unet(onnx_folder: Path, bundle: Bundle) -> OpenVinoModule:
    return load_openvino(onnx_folder, bundle, "unet", num_threads=1)


@pytest.mark.parametrize("name", NAMES)
def test_one_network_serves_any_number_of_rows(onnx_folder: Path, bundle: Bundle, name: str) -> None:
    spec = module_specs(bundle)[name]
    reference, network = spec.load(bundle, torch.float32), load_openvino(onnx_folder, bundle, name, 1)
    # The same number of rows comes again after others.
    for num_rows in (1, 3, 32, 3):
        inputs = random_inputs(spec, num_rows, torch.Generator().manual_seed(num_rows))
        with torch.inference_mode():
            torch.testing.assert_close(network(*inputs), reference(*inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_depend_on_its_neighbours(onnx_folder: Path, bundle: Bundle, name: str) -> None:
    spec = module_specs(bundle)[name]
    network = load_openvino(onnx_folder, bundle, name, 1)
    inputs, others = (random_inputs(spec, 4, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    mixed = [torch.cat([own[:1], other[1:]]) for own, other in zip(inputs, others, strict=True)]
    with torch.inference_mode():
        together, with_others = network(*inputs), network(*mixed)
        alone = network(*(tensor[:1] for tensor in inputs))
    assert torch.equal(together[0], with_others[0])
    assert not torch.equal(together[1], with_others[1])
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not has_bfloat16(), reason="this processor has neither AVX512-BF16 nor AMX")
@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_computed_where_it_is_asked_for(onnx_folder: Path, bundle: Bundle, name: str) -> None:
    spec = module_specs(bundle)[name]
    network = load_openvino(onnx_folder, bundle, name, 1, torch.bfloat16)
    expected = outputs(spec, spec.load(bundle, torch.float32))
    for wanted, got in zip(expected, outputs(spec, network), strict=True):
        assert got.dtype == torch.float32
        error = ((got - wanted).square().mean().sqrt() / wanted.std()).item()
        # Float32 would be closer by far.
        assert 1e-4 < error < BFLOAT16_TOLERANCE


def test_a_call_leaves_its_inputs_and_earlier_outputs_alone(unet: OpenVinoModule) -> None:
    first, second = (random_inputs(unet.spec, 2, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    kept = [tensor.clone() for tensor in first]
    with torch.inference_mode():
        output = unet(*first)
        before = output.clone()
        unet(*second)
    assert torch.equal(output, before)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(first, kept, strict=True))


def test_inputs_need_not_be_contiguous(unet: OpenVinoModule) -> None:
    sample, _, prompt_embeds = random_inputs(unet.spec, 3, torch.Generator().manual_seed(0))
    t = torch.tensor(7)
    with torch.inference_mode():
        expected = unet(sample, t.repeat(3), prompt_embeds)
        strided = sample.mT.contiguous().mT
        assert not strided.is_contiguous()
        assert torch.equal(unet(strided, t.expand(3), prompt_embeds), expected)


def test_a_wrong_input_is_named(unet: OpenVinoModule) -> None:
    sample, t, prompt_embeds = random_inputs(unet.spec, 2, torch.Generator().manual_seed(0))
    with pytest.raises(FashionRAGError, match=r"^unet: timestep: got torch\.int32 \[2\]; must be torch\.int64"):
        unet(sample, t.int(), prompt_embeds)


def test_threads_and_precision_are_those_asked_for(onnx_folder: Path, bundle: Bundle) -> None:
    spec = module_specs(bundle)["text_encoder"]
    compiled = OpenVinoModule(onnx_path(onnx_folder, spec), spec, 2)._request.get_compiled_model()
    wanted = {"INFERENCE_NUM_THREADS": 2, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    assert {name: compiled.get_property(name) for name in wanted} == wanted
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"


def test_unsound_files_are_not_run(onnx_folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    for path in onnx_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    unet = tmp_path / "unet.onnx"
    unet.write_bytes(unet.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"unet\.onnx: has changed since it was exported: SHA-256"):
        load_openvino(tmp_path, bundle, "unet", 1)
