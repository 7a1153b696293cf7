import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch

from fashion_rag.bundle import Bundle
from fashion_rag.bundle_write import write_bundle
from fashion_rag.errors import ArtifactError
from fashion_rag.models.adapter import InversionAdapter
from fashion_rag.models.autoencoder import fit_preview
from fashion_rag.weights import read_state, write_state
from tests import tiny

LOADERS = {
    "unet": "load_unet",
    "vae": "load_vae",
    "text_encoder": "load_prompt_encoder",
    "vision_encoder": "load_garment_encoder",
    "inversion_adapter": "load_garment_encoder",
    "retrieval": "load_retrieval_encoder",
}
# Published files have older names, and a buffer that is no weight.
OLD_ATTENTION = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """Return a copy of the bundle that a test may change."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def weights_of(bundle: Path, part: str) -> Path:
    (path,) = (bundle / part).glob("*.safetensors")
    return path


def old_vae_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for key, tensor in state.items():
        if ".mid_block.attentions." in key:
            for new, old in OLD_ATTENTION.items():
                key = key.replace(new, old)
        renamed[key] = tensor
    assert sum(".query." in key or ".proj_attn." in key for key in renamed) == 8
    return renamed


def test_all_parts_load_with_the_weights_that_were_written(tmp_path: Path) -> None:
    parts = tiny.make_parts(tmp_path, seed=3)
    bundle = write_bundle(tmp_path / "bundle", tiny.MANIFEST, parts)
    assert bundle == Bundle.open(tmp_path / "bundle")
    assert replace(bundle.manifest, preview=None) == tiny.MANIFEST
    assert bundle.sampler.prediction_type == "epsilon"
    garments = bundle.load_garment_encoder()
    assert (garments.crop, garments.picture_size) == (32, (64, 48))
    assert (garments.mean, garments.std) == ((0.5,) * 3, (0.25,) * 3)
    pairs = (
        (bundle.load_unet().unet, parts.unet),
        (bundle.load_vae().encoder.encoder, parts.vae.encoder),
        (bundle.load_vae().decoder.decoder, parts.vae.decoder),
        (bundle.load_prompt_encoder().text_encoder.encoder, parts.text_encoder.encoder),
        (garments.network.vision_encoder, parts.vision_encoder),
        (garments.network.adapter, parts.inversion_adapter),
    )
    for loaded, written in pairs:
        state = loaded.state_dict()
        assert state.keys() == written.state_dict().keys()
        assert all(torch.equal(state[key], tensor) for key, tensor in written.state_dict().items())
        assert not loaded.training and not any(weight.requires_grad for weight in loaded.parameters())


@pytest.mark.parametrize("factor", [None, 0.5])
def test_parts_without_networks_are_otherwise_the_same(bundle: Path, factor: float | None) -> None:
    path = bundle / "vae" / "config.json"
    config = json.loads(path.read_text())
    del config["scaling_factor"]
    path.write_text(json.dumps(config if factor is None else config | {"scaling_factor": factor}))
    opened = Bundle.open(bundle)
    for load in (opened.load_vae, opened.load_garment_encoder, opened.load_prompt_encoder):
        whole, rest = load(), load(networks=False)
        for name in ("scaling_factor", "downsampling", "picture_size", "crop", "mean", "std"):
            assert getattr(rest, name, None) == getattr(whole, name, None)
        kept = whole.state_dict()
        assert set(rest.state_dict()) == {name for name in kept if name.startswith("token_embedding.")}
        assert all(torch.equal(tensor, kept[name]) for name, tensor in rest.state_dict().items())
        assert not rest.training and not any(weight.requires_grad for weight in rest.parameters())


def test_a_bundle_is_written_with_the_preview_of_its_stored_weights(tmp_path: Path) -> None:
    parts = tiny.make_parts(tmp_path)
    bundle = write_bundle(tmp_path / "bundle", tiny.MANIFEST, parts, torch.float16)
    preview = bundle.manifest.preview
    assert preview is not None
    torch.testing.assert_close(
        torch.tensor(preview), torch.tensor(fit_preview(bundle.load_vae(), tiny.MANIFEST.image_size)), rtol=0, atol=1e-4
    )
    assert Bundle.open(bundle.path).manifest == replace(tiny.MANIFEST, preview=preview)


def test_a_preview_of_the_manifest_s_own_is_kept(tmp_path: Path) -> None:
    manifest = replace(tiny.MANIFEST, preview=((0.1, 0.2, 0.3),) * 5)
    assert write_bundle(tmp_path / "bundle", manifest, tiny.make_parts(tmp_path)).manifest == manifest


def test_a_bundle_without_a_preview_is_whole(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["preview"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert Bundle.open(bundle).manifest == tiny.MANIFEST


def test_weights_stored_as_half_load_as_what_is_asked_for(tmp_path: Path) -> None:
    parts = tiny.make_parts(tmp_path)
    bundle = write_bundle(tmp_path / "bundle", tiny.MANIFEST, parts, torch.float16)
    assert {tensor.dtype for part in LOADERS for tensor in read_state(weights_of(bundle.path, part)).values()} == {
        torch.float16
    }
    wanted = parts.unet.conv_in.weight.half()
    assert torch.equal(bundle.load_unet().unet.conv_in.weight, wanted.float())
    assert torch.equal(bundle.load_unet(dtype=torch.bfloat16).unet.conv_in.weight, wanted.bfloat16())
    assert bundle.load_retrieval_encoder().encode_texts(["red"]).dtype == "float32"


def test_the_order_of_random_numbers_outside_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    wanted = torch.rand(1)
    torch.manual_seed(1)
    tiny.make_parts(tmp_path)
    assert torch.equal(torch.rand(1), wanted)


def test_a_file_missing_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    for path in sorted(path.relative_to(tiny_bundle) for path in tiny_bundle.rglob("*") if path.is_file()):
        bundle = Path(shutil.copytree(tiny_bundle, tmp_path / str(path).replace("/", "-")))
        (bundle / path).unlink()
        # The retrieval encoder's own small files are read only when it is loaded.
        with pytest.raises(ArtifactError, match=re.escape(str(bundle / path.parent))):
            Bundle.open(bundle).load_retrieval_encoder()


@pytest.mark.parametrize("part", LOADERS)
@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda state, key: state.pop(key), "{key} is missing, expected {shape}"),
        (lambda state, key: state.update(extra=torch.zeros(3)), "extra [3] is unexpected"),
        (lambda state, key: state.update({key: torch.zeros(1, 2)}), "{key} is [1, 2], expected {shape}"),
    ],
    ids=["missing", "unexpected", "wrong shape"],
)
def test_weights_that_do_not_fit_are_refused(bundle: Path, part: str, spoil: Callable[..., object], fault: str) -> None:
    path = weights_of(bundle, part)
    state = read_state(path)
    key = next(key for key, tensor in state.items() if tensor.ndim == 2 and tensor.shape != (1, 2))
    message = fault.format(key=key, shape=list(state[key].shape))
    spoil(state, key)
    write_state(path, state)
    with pytest.raises(ArtifactError, match=f"{re.escape(str(path))}.*{re.escape(message)}"):
        getattr(Bundle.open(bundle), LOADERS[part])()


def test_a_damaged_weights_file_is_refused(bundle: Path) -> None:
    path = weights_of(bundle, "unet")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=re.escape(f"{path}: not a readable safetensors file")):
        Bundle.open(bundle).load_unet()


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet/config.json", {"in_channels": 9}, "in_channels is 9; must be 27"),
        ("unet/config.json", {"out_channels": 8}, "out_channels is 8; must be 4"),
        ("unet/config.json", {"cross_attention_dim": 32}, "cross_attention_dim is 32; must be 16"),
        ("vae/config.json", {"latent_channels": 16}, "latent_channels is 16; must be 4"),
        ("vae/config.json", {"block_out_channels": [4] * 6}, "remainder of image_size"),
        ("inversion_adapter/config.json", {"text_width": 32}, "text_width is 32; must be 16"),
        ("inversion_adapter/config.json", {"num_pseudo_words": 5}, "num_pseudo_words is 5; must be 4"),
        ("text_encoder/config.json", {"vocab_size": 49408}, "number of tokens is 600; must be 49408"),
        ("text_encoder/config.json", {"max_position_embeddings": 32}, "max_position_embeddings is 32; must be 77"),
        ("image_processor/preprocessor_config.json", {"crop_size": 224}, "crop_size is 224; must be 32"),
        ("image_processor/preprocessor_config.json", {"image_std": [1]}, "length of image_std is 1; must be 3"),
        ("scheduler/scheduler_config.json", {"_class_name": "PNDMScheduler"}, "PNDMScheduler"),
        ("manifest.json", {"format_version": 99}, "format_version is 99"),
        *(
            ("manifest.json", {"preview": preview}, "must be five rows of three finite numbers")
            for preview in (
                3,
                [],
                [1.0] * 5,
                [[1.0] * 3] * 4,
                [[1.0] * 4] * 5,
                [[1, 2, "3"]] * 5,
                [[1.0, 2.0, nan]] * 5,
            )
        ),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(
    bundle: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    change_json(bundle / file, **changes)
    with pytest.raises(ArtifactError, match=re.escape(message)):
        Bundle.open(bundle)


def test_a_tokenizer_with_another_dollar_is_refused(bundle: Path) -> None:
    path = bundle / "tokenizer" / "vocab.json"
    vocab = json.loads(path.read_text())
    vocab["$</w>"], vocab["%</w>"] = vocab["%</w>"], vocab["$</w>"]
    path.write_text(json.dumps(vocab))
    with pytest.raises(ArtifactError, match=re.escape('ids of "$" is [260]; must be [259]')):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("unet", {"block_out_channels": [8]}),
        ("vae", {"norm_num_groups": 3}),
        ("vision_encoder", {"hidden_size": 15}),
        ("vision_encoder", {"hidden_act": "no such"}),
        ("inversion_adapter", {"colour": "red"}),
    ],
)
def test_a_configuration_that_builds_no_network_is_refused(bundle: Path, part: str, changes: dict[str, Any]) -> None:
    path = bundle / part / "config.json"
    change_json(path, **changes)
    with pytest.raises(ArtifactError, match=re.escape(str(path))):
        getattr(Bundle.open(bundle), LOADERS[part])()


def test_files_with_the_old_names_load_alike(bundle: Path, tiny_bundle: Path) -> None:
    path = weights_of(bundle, "vae")
    write_state(path, old_vae_names(read_state(path)))
    for part, prefix in (("text_encoder", "text_model."), ("vision_encoder", "vision_model.")):
        path = weights_of(bundle, part)
        state = {prefix + key: tensor for key, tensor in read_state(path).items()}
        write_state(path, state | {f"{prefix}embeddings.position_ids": torch.arange(77)[None]})
    old, new = Bundle.open(bundle), Bundle.open(tiny_bundle)
    for load in set(LOADERS.values()) - {"load_retrieval_encoder"}:
        state = getattr(new, load)().state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in getattr(old, load)().state_dict().items())


def test_a_bundle_whose_parts_do_not_fit_is_not_written(bundle: Path, tmp_path: Path) -> None:
    parts = tiny.make_parts(tmp_path)
    narrow = InversionAdapter(parts.vision_encoder.config, 24, 8, tiny.MANIFEST.num_pseudo_words)
    with pytest.raises(ArtifactError, match="text_width is 8; must be 16"):
        write_bundle(bundle, tiny.MANIFEST, replace(parts, inversion_adapter=narrow))
    with pytest.raises(ArtifactError, match="in_channels is 9; must be 27"):
        write_bundle(tmp_path / "new", tiny.MANIFEST, replace(parts, unet=tiny.make_unet(in_channels=9)))
    assert Bundle.open(bundle).load_garment_encoder()
    assert not (tmp_path / "new").exists()
