import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fashion_rag import bundle_import, published
from fashion_rag.artifacts import write_json
from fashion_rag.bundle import Bundle
from fashion_rag.bundle_import import import_bundle
from fashion_rag.errors import ArtifactError, InvalidRequest
from fashion_rag.manifest import Manifest
from fashion_rag.models.pretrained import read_unet
from fashion_rag.weights import read_state, write_state
from tests import tiny
from tests.golden.golden import Golden, difference
from tests.person import toy
from tests.test_bundle import old_vae_names

# The base model was written for another sampler, and DDIM does not know all options of that.
BASE_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.8.0",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "trained_betas": None,
}
PROCESSOR = {
    "crop_size": {"height": 32, "width": 32},
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "size": {"shortest_edge": 32},
}


def write_clip(folder: Path, config: dict[str, Any], state: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    write_state(folder / "model.safetensors", state)


def write_base(base: Path, text: dict[str, Any], text_state: dict[str, Tensor], unet: Any, vae: Any) -> None:
    """Write Stable Diffusion 2 inpainting in the layout that was published, at toy size."""
    write_clip(base / "text_encoder", text, text_state)
    unet.save_config(base / "unet")
    vae.save_config(base / "vae")
    write_state(base / "vae" / "diffusion_pytorch_model.safetensors", old_vae_names(vae.state_dict()))
    (base / "scheduler").mkdir()
    write_json(base / "scheduler" / "scheduler_config.json", BASE_SCHEDULER)


def with_prefix(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a CLIP encoder under their published names, with the buffer that files had."""
    positions = {f"{prefix}embeddings.position_ids": torch.arange(77)[None]}
    return {prefix + key: tensor for key, tensor in state.items()} | positions


@pytest.fixture
def released(tmp_path: Path) -> dict[str, Any]:
    """Return the arguments of an import from files in the published layout, at toy size."""
    parts = tiny.make_parts(tmp_path)
    base, vision = tmp_path / "base", tmp_path / "vision"
    text_state = with_prefix("text_model.", parts.text_encoder.state_dict())
    write_base(base, parts.text_encoder.config.to_dict(), text_state, tiny.make_unet(in_channels=9), parts.vae)
    shutil.copytree(parts.tokenizer, base / "tokenizer")
    # The vision encoder comes as one half of a whole CLIP model.
    other_half = {"text_model.final_layer_norm.weight": torch.zeros(3), "visual_projection.weight": torch.zeros(2, 2)}
    config = {"model_type": "clip", "vision_config": parts.vision_encoder.config.to_dict()}
    write_clip(vision, config, with_prefix("vision_model.", parts.vision_encoder.state_dict()) | other_half)
    write_json(vision / "preprocessor_config.json", PROCESSOR)
    torch.save(parts.unet.state_dict(), tmp_path / "unet_120000.pth")
    torch.save(parts.inversion_adapter.state_dict(), tmp_path / "inversion_adapter_120000.pth")
    return {
        "base": str(base),
        "unet": tmp_path / "unet_120000.pth",
        "adapter": tmp_path / "inversion_adapter_120000.pth",
        "vision": str(vision),
        "retrieval": str(parts.retrieval),
        "out": tmp_path / "out",
        "name": "imported",
    }


def change_state(path: Path, **changes: Tensor | None) -> None:
    state = torch.load(path) | changes
    torch.save({key: tensor for key, tensor in state.items() if tensor is not None}, path)


def test_the_imported_bundle_is_the_one_that_its_parts_make(
    released: dict[str, Any], tiny_bundle: Path, tmp_path: Path
) -> None:
    imported, made = import_bundle(**released), Bundle.open(tiny_bundle)
    for load in ("load_unet", "load_vae", "load_prompt_encoder", "load_garment_encoder"):
        expected = getattr(made, load)().state_dict()
        state = getattr(imported, load)().state_dict()
        assert expected.keys() == state.keys()
        assert all(torch.equal(state[key], expected[key]) for key in expected), load
    assert imported.load_retrieval_encoder().fingerprint == made.load_retrieval_encoder().fingerprint
    assert imported.sampler == made.sampler
    encoder = imported.load_garment_encoder()
    assert (encoder.crop, encoder.mean, encoder.std) == (32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert json.loads((imported.path / "inversion_adapter" / "config.json").read_text()) == {
        "hidden_dim": 24,
        "text_width": 16,
        "num_pseudo_words": 4,
        "dropout": 0.5,
    }
    assert imported.manifest.image_size == (512, 384)
    assert imported.manifest.num_pseudo_words == 4


def test_the_manifest_says_that_the_released_weights_are_not_for_commerce(released: dict[str, Any]) -> None:
    licence = import_bundle(**released, licence="Base: CreativeML Open RAIL++-M.").manifest.licence
    assert "CC BY-NC 4.0" in licence and licence.endswith("Base: CreativeML Open RAIL++-M.")


@pytest.fixture
def base_only(released: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of an import of the base models alone, whose UNet is in the published layout, too."""
    torch.manual_seed(2)
    unet = tiny.make_unet(in_channels=9)
    write_state(Path(released["base"]) / "unet" / "diffusion_pytorch_model.safetensors", unet.state_dict())
    return released | {"unet": None, "adapter": None}


def test_base_models_alone_become_a_bundle_that_is_marked_as_untrained(base_only: dict[str, Any]) -> None:
    imported = import_bundle(**base_only)
    assert imported.manifest.untrained and Manifest.read(imported.path / "manifest.json").untrained
    assert "CC BY-NC" not in imported.manifest.licence
    assert imported.manifest.num_pseudo_words == 16
    for load in (imported.load_vae, imported.load_prompt_encoder, imported.load_retrieval_encoder):
        assert load()
    # The adapter's inner width is four times the vision tower's, as in the paper.
    assert json.loads((imported.path / "inversion_adapter" / "config.json").read_text()) == {
        "hidden_dim": 64,
        "text_width": 16,
        "num_pseudo_words": 16,
        "dropout": 0.5,
    }


def test_the_widened_base_predicts_what_the_base_did_whatever_the_pose_is(base_only: dict[str, Any]) -> None:
    widened = import_bundle(**base_only).load_unet()
    base = read_unet(Path(base_only["base"]) / "unet")
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 27, 16, 12, generator=generator)
    text, t = torch.randn(2, 77, 16, generator=generator), torch.tensor([3, 800])
    with torch.inference_mode():
        expected = base(sample[:, :9], t, encoder_hidden_states=text).sample
        torch.testing.assert_close(widened(sample, t, text), expected, rtol=1e-4, atol=1e-5)


def test_a_new_adapter_is_drawn_from_the_seed(base_only: dict[str, Any], tmp_path: Path) -> None:
    states = []
    for number, seed in enumerate((3, 3, 4)):
        imported = import_bundle(**base_only | {"out": tmp_path / str(number)}, seed=seed)
        states.append(read_state(imported.path / "inversion_adapter" / "model.safetensors"))
    first, same, other = states
    assert all(torch.equal(same[key], tensor) for key, tensor in first.items())
    # Biases and weights of normalisations begin at 0 and 1 whatever the seed is.
    assert not torch.equal(other["layers.0.weight"], first["layers.0.weight"])


@pytest.mark.parametrize("name", ["unet", "adapter"])
def test_one_released_file_needs_the_other(released: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{name}: is missing; must be given with"):
        import_bundle(**released | {name: None})


def test_the_base_s_own_unet_is_fetched_only_where_it_is_needed(
    released: dict[str, Any], base_only: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fetched = []

    def snapshot_download(source: str, allow_patterns: list[str]) -> str:
        fetched.append(allow_patterns)
        return str(released["base"])

    monkeypatch.setattr(published, "snapshot_download", snapshot_download)
    import_bundle(**released | {"base": "some/base"})
    import_bundle(**base_only | {"base": "some/base", "out": tmp_path / "untrained"})
    assert ["unet/diffusion_pytorch_model.safetensors" in patterns for patterns in fetched] == [False, True]


def test_a_parser_and_a_pose_estimator_come_along_with_their_licences(released: dict[str, Any], tmp_path: Path) -> None:
    parser, pose = toy.write_parser(tmp_path / "my-parser"), toy.write_pose_estimator(tmp_path / "my-pose")
    imported = import_bundle(**released, parser=str(parser), pose=str(pose))
    assert imported.load_parser() and imported.load_pose_estimator()
    assert (imported.path / "parser" / "model.safetensors").read_bytes() == (parser / "model.safetensors").read_bytes()
    first, *rest = imported.manifest.licence.splitlines()
    assert "CC BY-NC 4.0" in first
    assert [line.partition(":")[0] for line in rest] == ["Human parser my-parser", "Pose estimator my-pose"]


def test_a_parser_that_does_not_fit_leaves_nothing_behind(released: dict[str, Any], tmp_path: Path) -> None:
    pose = toy.write_pose_estimator(tmp_path / "my-pose")
    with pytest.raises(ArtifactError, match="model_type is 'vitpose'; must be 'segformer'"):
        import_bundle(**released, parser=str(pose))
    assert not released["out"].exists()


def test_the_stored_precision_can_be_chosen(released: dict[str, Any]) -> None:
    imported = import_bundle(**released, dtype=torch.float16)
    state = read_state(imported.path / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet", {"conv_in.weight": torch.zeros(8, 9, 3, 3)}, "conv_in.weight is [8, 9, 3, 3], expected [8, 27, 3, 3]"),
        ("unet", {"conv_out.bias": None}, "conv_out.bias is missing, expected [4]"),
        ("unet", {"unet.extra": torch.zeros(2)}, "unet.extra [2] is unexpected"),
        ("unet", {"state_dict": {}}, "not a plain state dict of tensors"),
        ("adapter", {"layers.6.weight": None}, "layers.6.weight is missing"),
        ("adapter", {"layers.6.weight": torch.zeros(63, 24)}, "has 63 rows; must be a multiple of the text width 16"),
        ("adapter", {"layers.6.weight": torch.zeros(48, 24)}, "layers.6.bias is [64], expected [48]"),
        ("adapter", {"post_layernorm.bias": torch.zeros(5)}, "post_layernorm.bias is [5], expected [16]"),
    ],
)
def test_released_weights_that_do_not_fit_are_refused(
    released: dict[str, Any], file: str, changes: dict[str, Any], message: str
) -> None:
    change_state(released[file], **changes)
    with pytest.raises(ArtifactError, match=f"{re.escape(str(released[file]))}.*{re.escape(message)}"):
        import_bundle(**released)
    assert not released["out"].exists()


@pytest.mark.parametrize("content", [None, b"", b"<html>not found</html>"])
def test_a_file_that_is_no_checkpoint_is_refused(released: dict[str, Any], content: bytes | None) -> None:
    released["unet"].unlink()
    if content is not None:
        released["unet"].write_bytes(content)
    with pytest.raises(ArtifactError, match=re.escape(f"{released['unet']}: not a readable file of weights")):
        import_bundle(**released)


def test_a_checkpoint_that_would_run_code_is_refused(released: dict[str, Any]) -> None:
    torch.save({"weight": Path("anything")}, released["adapter"])
    with pytest.raises(ArtifactError, match="not a readable file of weights"):
        import_bundle(**released)


def test_a_base_model_that_is_not_for_inpainting_is_refused(released: dict[str, Any]) -> None:
    path = Path(released["base"]) / "unet" / "config.json"
    write_json(path, json.loads(path.read_text()) | {"in_channels": 4})
    with pytest.raises(ArtifactError, match=r"in_channels is 4; an inpainting UNet has 9"):
        import_bundle(**released)


def test_a_name_that_is_no_folder_is_fetched_from_the_hub(
    released: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {"some/base": released["base"], "some/vision": released["vision"]}
    fetched = []

    def snapshot_download(source: str, allow_patterns: list[str]) -> str:
        fetched.append((source, allow_patterns))
        return str(folders[source])

    monkeypatch.setattr(published, "snapshot_download", snapshot_download)
    assert import_bundle(**released | {"base": "some/base", "vision": "some/vision"}).load_vae()
    assert fetched == [("some/base", bundle_import.BASE_FILES), ("some/vision", bundle_import.VISION_FILES)]
    # Exactly the files that are needed are asked for.
    base = Path(released["base"])
    present = {str(path.relative_to(base)) for path in base.rglob("*") if path.is_file()}
    assert {name for name in present if not name.startswith("tokenizer/")} | {"tokenizer/*"} == set(
        bundle_import.BASE_FILES
    )


def test_what_is_neither_folder_nor_hub_id_is_refused(released: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match=r"^/no/such/folder: no such folder, nor could it be fetched"):
        import_bundle(**released | {"base": "/no/such/folder"})
    with pytest.raises(ArtifactError, match=r"^ViT-L-14/no_such_tag: no such folder, nor MODEL/TAG"):
        import_bundle(**released | {"retrieval": "ViT-L-14/no_such_tag"})


def test_a_pretrained_retrieval_model_is_written_with_its_own_preprocessing(
    released: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_clip = bundle_import.open_clip
    preprocess = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "resize_mode": "longest"}
    text_cfg = {"vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = tiny.RETRIEVAL["model_cfg"] | {"text_cfg": text_cfg}
    model = open_clip.CLIP(**config)
    open_clip.model.set_model_preprocess_cfg(model, preprocess)
    monkeypatch.setattr(open_clip, "create_model", lambda name, **_: model)
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: config)
    imported = import_bundle(**released | {"retrieval": "ViT-L-14/laion2b_s32b_b82k"})
    written = json.loads((imported.path / "retrieval" / "open_clip_config.json").read_text())
    assert written["model_cfg"] == config
    assert written["preprocess_cfg"]["interpolation"] == "bilinear"
    assert written["preprocess_cfg"]["resize_mode"] == "longest"
    encoder = imported.load_retrieval_encoder()
    ids = encoder.tokenizer(["a dress"])
    assert ids[0, :4].tolist() == [49406, 320, 2595, 49407]
    assert torch.allclose(torch.from_numpy(encoder.encode_texts(["a dress"])), model.encode_text(ids, normalize=True))


def test_golden_weights_in_the_published_layout_are_imported(
    golden: Golden, released: dict[str, Any], tmp_path: Path
) -> None:
    names = ("unet", "vae", "text_encoder", "vision_encoder", "inversion_adapter")
    states = {name: golden.tensors(f"weights_{name}") for name in names}
    base, vision = tmp_path / "golden", tmp_path / "golden-vision"
    write_clip(base / "text_encoder", golden.config("text_encoder"), states["text_encoder"])
    write_clip(vision, golden.config("vision_encoder"), states["vision_encoder"])
    write_json(vision / "preprocessor_config.json", PROCESSOR | {"crop_size": golden.crop})
    shutil.copytree(Path(released["base"]) / "scheduler", base / "scheduler")
    shutil.copytree(golden.folder / "tokenizer", base / "tokenizer")
    for name, changes in (("unet", {"in_channels": 9}), ("vae", {})):
        (base / name).mkdir()
        write_json(base / name / "config.json", golden.config(name) | changes)
    write_state(base / "vae" / "diffusion_pytorch_model.safetensors", states["vae"])
    torch.save(states["unet"], tmp_path / "unet.pth")
    torch.save(states["inversion_adapter"], tmp_path / "adapter.pth")
    imported = import_bundle(
        base=str(base),
        unet=tmp_path / "unet.pth",
        adapter=tmp_path / "adapter.pth",
        vision=str(vision),
        retrieval=released["retrieval"],
        out=tmp_path / "imported",
        name="golden",
    )
    assert imported.manifest.num_pseudo_words == golden.num_pseudo_words
    with torch.inference_mode():
        case = golden.tensors("case3_unet")
        noise_pred = imported.load_unet()(case["sample"], case["timesteps"], case["encoder_hidden_states"])
        assert difference(noise_pred, case["output"]) < golden.tolerance("case3")
        case = golden.tensors("case4_vae")
        mean, _ = imported.load_vae().encoder(case["image"]).chunk(2, dim=1)
        assert difference(mean, case["mean"]) < golden.tolerance("case4")
        case = golden.tensors("case1_inversion_adapter")
        words = imported.load_garment_encoder().network.adapter(case["input_last_hidden_state"])
        assert difference(words.flatten(1), case["output"]) < golden.tolerance("case1")
        case = golden.tensors("case2_text")
        encoder = imported.load_prompt_encoder()
        embeds = encoder.text_encoder(encoder.token_embedding(case["no_dollar.input_ids"]))
        assert difference(embeds, case["no_dollar.last_hidden_state"]) < golden.tolerance("case2")
