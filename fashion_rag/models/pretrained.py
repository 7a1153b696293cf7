"""Networks in the folders that transformers and diffusers publish: a `config.json` and a safetensors file.

Called by the bundle, and by the import of released checkpoints. A weight that a file does not hold is an error; it is
never filled in with random numbers. The functions import what they build from, because importing transformers' and
diffusers' networks takes seconds and 150 MB, and a process that runs compiled networks needs none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from fashion_rag.artifacts import read_config
from fashion_rag.errors import ArtifactError
from fashion_rag.models.adapter import InversionAdapter
from fashion_rag.weights import StateFile, Wanted, all_keys, hollow, load_strict

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModel

CONFIG_FILE = "config.json"
CLIP_FILE = "model.safetensors"
DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"
PROCESSOR_FILE = "preprocessor_config.json"
FLOAT32 = torch.float32
# The weights of the text encoder that tokens are looked up in.
TOKEN_TABLE = "embeddings.token_embedding.weight"

# Published files name the VAE's attention layers as older versions of diffusers did.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_MID_ATTENTION = ".mid_block.attentions.0."

Module = TypeVar("Module", bound=nn.Module)


def read_text_encoder(folder: Path, dtype: torch.dtype = FLOAT32, wanted: Wanted = all_keys) -> CLIPTextModel:
    """Return the CLIP text encoder in `folder`.

    dtype: the type of its weights. wanted: which weights are read; a network that lacks some cannot be called.

    Like all functions here, it raises ArtifactError for files that are missing, damaged, or do not fit each other.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    model = build(lambda raw: CLIPTextModel(CLIPTextConfig.from_dict(raw)), folder / CONFIG_FILE)
    return fill(model, current_names(StateFile(folder / CLIP_FILE)), folder / CLIP_FILE, dtype, wanted)


def read_token_table(folder: Path) -> nn.Embedding:
    """Return the token embeddings of the CLIP text encoder in `folder`, in float32; no other weights are read."""
    path = folder / CLIP_FILE
    state = current_names(StateFile(path))
    if TOKEN_TABLE not in state:
        raise ArtifactError(f"{path}: does not fit its configuration: {TOKEN_TABLE} is missing")
    # Copied, as in `load_strict`, because the network must not change with the file.
    table: nn.Embedding = nn.Embedding.from_pretrained(state[TOKEN_TABLE].to(FLOAT32, copy=True))
    return table


def read_vision_encoder(folder: Path, dtype: torch.dtype = FLOAT32, wanted: Wanted = all_keys) -> CLIPVisionModel:
    """Return the CLIP vision encoder in `folder`. If the folder has a whole CLIP model, only this part is read."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    model = build(
        lambda raw: CLIPVisionModel(CLIPVisionConfig.from_dict(raw.get("vision_config", raw))), folder / CONFIG_FILE
    )
    state = current_names(StateFile(folder / CLIP_FILE), only="vision_model.")
    return fill(model, state, folder / CLIP_FILE, dtype, wanted)


def read_adapter(
    folder: Path, vision_config: CLIPVisionConfig, dtype: torch.dtype = FLOAT32, wanted: Wanted = all_keys
) -> InversionAdapter:
    """Return the inversion adapter in `folder`, for a vision encoder of this configuration.

    dtype, wanted: as for `read_text_encoder`.
    """
    path = folder / CONFIG_FILE
    try:
        with hollow():
            adapter = InversionAdapter(vision_config, **read_config(path))
    except TypeError as error:
        raise ArtifactError(f"{path}: not the configuration of an inversion adapter: {error}") from error
    return fill(adapter, StateFile(folder / CLIP_FILE), folder / CLIP_FILE, dtype, wanted)


def read_unet(folder: Path, dtype: torch.dtype = FLOAT32, wanted: Wanted = all_keys) -> UNet2DConditionModel:
    """Return the UNet in `folder`."""
    from diffusers import UNet2DConditionModel

    model = build(UNet2DConditionModel.from_config, folder / CONFIG_FILE)
    return fill(model, StateFile(folder / DIFFUSERS_FILE), folder / DIFFUSERS_FILE, dtype, wanted)


def read_vae(folder: Path, dtype: torch.dtype = FLOAT32, wanted: Wanted = all_keys) -> AutoencoderKL:
    """Return the VAE in `folder`."""
    from diffusers import AutoencoderKL

    model = build(AutoencoderKL.from_config, folder / CONFIG_FILE)
    return fill(model, current_names(StateFile(folder / DIFFUSERS_FILE)), folder / DIFFUSERS_FILE, dtype, wanted)


def read_tokenizer(folder: Path) -> CLIPTokenizer:
    """Return the CLIP tokenizer in `folder`."""
    from transformers import CLIPTokenizer

    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder / name}: no such file")
    try:
        return CLIPTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}: not a readable tokenizer: {error}") from error


class Renamed(Mapping[str, Tensor]):
    """The tensors of a mapping under new names. A tensor is read when it is asked for."""

    def __init__(self, state: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        """Take the tensors in `state`. names: new name to name in `state`."""
        self.state, self.names = state, names

    def __getitem__(self, name: str) -> Tensor:
        return self.state[self.names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def current_names(state: Mapping[str, Tensor], only: str = "") -> Mapping[str, Tensor]:
    """Return `state` with its older names replaced by those of the installed transformers and diffusers.

    only: a prefix. If any names begin with it, names that do not are left out.
    """
    names = {}
    for old in [key for key in state if key.startswith(only)] or state:
        # Files of older versions hold this buffer, which the models now compute.
        if not old.endswith("embeddings.position_ids"):
            names[_current_name(old)] = old
    return Renamed(state, names)


def _current_name(old: str) -> str:
    """Return the name that the installed libraries use for the weight `old`."""
    key = old.removeprefix("text_model.").removeprefix("vision_model.")
    if _MID_ATTENTION not in key:
        return key
    half, layer = key.split(_MID_ATTENTION)
    name, kind = layer.rsplit(".", 1)
    return f"{half}{_MID_ATTENTION}{_OLD_ATTENTION.get(name, name)}.{kind}"


def build(make: Callable[[dict[str, Any]], Module], path: Path) -> Module:
    """Return the network that `make` builds from the configuration at `path`, without memory for its parameters.

    Raises ArtifactError for a configuration that cannot be built.
    """
    raw = read_config(path)
    try:
        with hollow():
            return make(raw)
    except (KeyError, StrictDataclassError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: no such network can be built: {error!r}") from error


def fill(
    module: Module,
    state: Mapping[str, Tensor],
    source: Path,
    dtype: torch.dtype = FLOAT32,
    wanted: Wanted = all_keys,
) -> Module:
    """Fill `module` with exactly `state`, and return it in evaluation mode, without gradients.

    Arguments and errors as `load_strict`.
    """
    load_strict(module, state, source, dtype, wanted)
    return module.eval().requires_grad_(False)
