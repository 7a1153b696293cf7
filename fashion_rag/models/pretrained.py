"""Networks from folders as transformers and diffusers publish them: a `config.json` and a safetensors file.

Called by the bundle, and by the import of released checkpoints. Nothing is filled in: what a file does not hold is an
error, never a random weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModel

from fashion_rag.artifacts import load_strict, read_config, read_state
from fashion_rag.errors import ArtifactError

CONFIG_FILE = "config.json"
CLIP_FILE = "model.safetensors"
DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"

# The VAE's attention layers as older diffusers called them, and published files still do.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_MID_ATTENTION = ".mid_block.attentions.0."

Module = TypeVar("Module", bound=nn.Module)


def read_text_encoder(folder: Path) -> CLIPTextModel:
    """The CLIP text encoder in `folder`, float32. Raises ArtifactError, like all of these, for what does not fit."""
    model = build(lambda raw: CLIPTextModel(CLIPTextConfig.from_dict(raw)), folder / CONFIG_FILE)
    return fill(model, current_names(read_state(folder / CLIP_FILE)), folder / CLIP_FILE)


def read_vision_encoder(folder: Path) -> CLIPVisionModel:
    """The CLIP vision encoder in `folder`, float32; of a CLIP model with more than that, the tower alone."""
    model = build(
        lambda raw: CLIPVisionModel(CLIPVisionConfig.from_dict(raw.get("vision_config", raw))), folder / CONFIG_FILE
    )
    state = read_state(folder / CLIP_FILE)
    tower = {key: tensor for key, tensor in state.items() if key.startswith("vision_model.")}
    return fill(model, current_names(tower or state), folder / CLIP_FILE)


def read_unet(folder: Path) -> UNet2DConditionModel:
    """The UNet in `folder`, float32."""
    model = build(UNet2DConditionModel.from_config, folder / CONFIG_FILE)
    return fill(model, read_state(folder / DIFFUSERS_FILE), folder / DIFFUSERS_FILE)


def read_vae(folder: Path) -> AutoencoderKL:
    """The VAE in `folder`, float32."""
    model = build(AutoencoderKL.from_config, folder / CONFIG_FILE)
    return fill(model, current_names(read_state(folder / DIFFUSERS_FILE)), folder / DIFFUSERS_FILE)


def read_tokenizer(folder: Path) -> CLIPTokenizer:
    """The CLIP tokenizer in `folder`."""
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder / name}: no such file")
    try:
        return CLIPTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}: not a readable tokenizer: {error}") from error


def current_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the names that the installed transformers and diffusers use, where it has older ones."""
    current = {}
    for key, tensor in state.items():
        # Once a buffer of every CLIP model, now made anew.
        if not key.endswith("embeddings.position_ids"):
            key = key.removeprefix("text_model.").removeprefix("vision_model.")
            if _MID_ATTENTION in key:
                half, layer = key.split(_MID_ATTENTION)
                name, kind = layer.rsplit(".", 1)
                key = f"{half}{_MID_ATTENTION}{_OLD_ATTENTION.get(name, name)}.{kind}"
            current[key] = tensor
    return current


def build(make: Callable[[dict[str, Any]], Module], path: Path) -> Module:
    """The module that `make` builds of the configuration at `path`, without weights worth keeping.

    Raises ArtifactError for a configuration that cannot be built.
    """
    raw = read_config(path)
    try:
        return make(raw)
    except (KeyError, StrictDataclassError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: no such network can be built: {error!r}") from error


def fill(module: Module, state: Mapping[str, Tensor], source: Path) -> Module:
    """`module`, holding exactly `state`, to be used but not trained. Raises ArtifactError as `load_strict`."""
    load_strict(module, state, source)
    return module.eval().requires_grad_(False)
