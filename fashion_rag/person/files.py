"""The human parser and the pose estimator on disk, each in a folder in the layout of transformers.

The bundle calls it. A folder has `config.json`, `model.safetensors` and `preprocessor_config.json`. Loading is strict,
as for all networks of a bundle.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from fashion_rag.artifacts import read_config
from fashion_rag.errors import ArtifactError
from fashion_rag.models.pretrained import CLIP_FILE, CONFIG_FILE, FLOAT32, PROCESSOR_FILE, Renamed, build, fill
from fashion_rag.person.labels import NUM_COCO_POINTS, class_table
from fashion_rag.person.parser import HumanParser, ParserNetwork
from fashion_rag.person.pixels import InputPicture
from fashion_rag.person.pose_estimator import PoseEstimator, PoseNetwork
from fashion_rag.weights import StateFile, Wanted, all_keys

if TYPE_CHECKING:
    from transformers import SegformerConfig, VitPoseConfig

# The folders in a bundle.
PARSER, POSE = "parser", "pose"
PART_FILES = (CONFIG_FILE, CLIP_FILE, PROCESSOR_FILE)

# Published SegFormers name their weights as older versions of transformers did; the pattern and the current name.
_OLD_SEGFORMER_NAMES = (
    (r"segformer\.encoder\.patch_embeddings\.(\d+)\.", r"segformer.stages.\1.patch_embeddings."),
    (r"segformer\.encoder\.block\.(\d+)\.", r"segformer.stages.\1.blocks."),
    (r"segformer\.encoder\.layer_norm\.(\d+)\.", r"segformer.stages.\1.layer_norm."),
    (r"\.attention\.self\.(query|key|value)\.", lambda name: f".attention.{name[1][0]}_proj."),
    (r"\.attention\.self\.sr\.", ".attention.sequence_reduction.sequence_reduction."),
    (r"\.attention\.self\.layer_norm\.", ".attention.sequence_reduction.layer_norm."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.mlp\.dense([12])\.", r".mlp.fc\1."),
    (r"\.layer_norm_1\.", ".layernorm_before."),
    (r"\.layer_norm_2\.", ".layernorm_after."),
    (r"decode_head\.linear_c\.", "decode_head.linear_projections."),
)


def read_parser(folder: Path, dtype: torch.dtype = FLOAT32, wanted: Wanted = all_keys) -> HumanParser:
    """Return the human parser in `folder`.

    dtype: the type of its weights. wanted: which weights are read; a network that lacks some cannot be called. Raises
    ArtifactError for files that are missing, damaged, or do not fit each other.
    """
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    parser = parser_without_network(folder)
    network = build(lambda raw: SegformerForSemanticSegmentation(SegformerConfig.from_dict(raw)), folder / CONFIG_FILE)
    state = _current_names(StateFile(folder / CLIP_FILE))
    parser.network = ParserNetwork(fill(network, state, folder / CLIP_FILE, dtype, wanted)).eval()
    return parser


def parser_without_network(folder: Path) -> HumanParser:
    """Return the human parser in `folder` for a caller who sets its `network`. Raises ArtifactError as `check_parser`.

    The weights are not read, and transformers' networks are not imported.
    """
    config, input_picture = check_parser(folder)
    return HumanParser(nn.Module(), input_picture, class_table(config.id2label, folder / CONFIG_FILE)).eval()


def read_pose_estimator(folder: Path, dtype: torch.dtype = FLOAT32, wanted: Wanted = all_keys) -> PoseEstimator:
    """Return the pose estimator in `folder`. Arguments and errors as for `read_parser`."""
    from transformers import VitPoseConfig, VitPoseForPoseEstimation

    estimator = pose_estimator_without_network(folder)
    network = build(lambda raw: VitPoseForPoseEstimation(VitPoseConfig.from_dict(raw)), folder / CONFIG_FILE)
    state = StateFile(folder / CLIP_FILE)
    estimator.network = PoseNetwork(fill(network, state, folder / CLIP_FILE, dtype, wanted)).eval()
    return estimator


def pose_estimator_without_network(folder: Path) -> PoseEstimator:
    """Return the pose estimator in `folder` for a caller who sets its `network`, as for `parser_without_network`."""
    _, input_picture = check_pose_estimator(folder)
    return PoseEstimator(nn.Module(), input_picture).eval()


def copy_part(source: Path, target: Path) -> None:
    """Copy a human parser or a pose estimator to the new folder `target`, byte for byte.

    Raises ArtifactError if a file is missing.
    """
    _check_files(source)
    target.mkdir()
    for name in PART_FILES:
        shutil.copyfile(source / name, target / name)


def check_parser(folder: Path) -> tuple[SegformerConfig, InputPicture]:
    """Return the configuration of the human parser in `folder`, and the form of its input.

    Raises ArtifactError, naming the file, for a file that is missing, another network, or classes of unknown names. The
    weights are not read.
    """
    from transformers import SegformerConfig

    path = folder / CONFIG_FILE
    config: SegformerConfig = _read_config(folder, SegformerConfig, "SegformerForSemanticSegmentation")
    class_table(config.id2label, path)
    return config, _input_picture(folder / PROCESSOR_FILE)


def check_pose_estimator(folder: Path) -> tuple[VitPoseConfig, InputPicture]:
    """Return the configuration of the pose estimator in `folder`, and the form of its input.

    Raises ArtifactError, naming the file, for a file that is missing, another network, joints other than COCO's, or
    input of another size. The weights are not read.
    """
    from transformers import VitPoseConfig

    path = folder / CONFIG_FILE
    config: VitPoseConfig = _read_config(folder, VitPoseConfig, "VitPoseForPoseEstimation")
    input_picture = _input_picture(folder / PROCESSOR_FILE)
    backbone = config.backbone_config
    _require(path, "the number of joints in id2label", len(config.id2label), NUM_COCO_POINTS)
    _require(path, "backbone_config.num_experts", getattr(backbone, "num_experts", None), 1)
    size = _pair(backbone.image_size)
    _require(folder / PROCESSOR_FILE, "size", input_picture.size, size, "the network's image_size")
    remainders = tuple(side % patch for side, patch in zip(size, _pair(backbone.patch_size), strict=True))
    _require(path, f"the remainder of image_size {size} by patch_size", remainders, (0, 0))
    return config, input_picture


def heat_map_size(config: VitPoseConfig) -> tuple[int, int]:
    """Return the size of the heat maps of a pose estimator with this configuration."""
    # Two layers of the classic decoder double the size, whatever the scale factor is.
    scale = config.scale_factor if config.use_simple_decoder else 4
    image, patch = _pair(config.backbone_config.image_size), _pair(config.backbone_config.patch_size)
    return image[0] // patch[0] * scale, image[1] // patch[1] * scale


def logits_size(config: SegformerConfig, input_size: tuple[int, int]) -> tuple[int, int]:
    """Return the size of the logits of a human parser with this configuration, for input of this size."""
    # The first layer is a convolution with a padding of half its kernel.
    kernel, stride = config.patch_sizes[0], config.strides[0]
    height, width = ((side + 2 * (kernel // 2) - kernel) // stride + 1 for side in input_size)
    return height, width


def _read_config(folder: Path, kind: Any, architecture: str) -> Any:
    """Return the configuration in `folder`, which must be of this kind and architecture."""
    _check_files(folder)
    path = folder / CONFIG_FILE
    raw = read_config(path)
    _require(path, "model_type", raw.get("model_type"), kind.model_type)
    # A configuration that was never saved with its network does not name it.
    _require(path, "architectures", raw.get("architectures") or [architecture], [architecture])
    try:
        return kind.from_dict(raw)
    except (KeyError, StrictDataclassError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: not a configuration of {kind.model_type}: {error!r}") from error


def _check_files(folder: Path) -> None:
    """Raise ArtifactError unless all files of a part are in `folder`."""
    for name in PART_FILES:
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder / name}: no such file")


def _input_picture(path: Path) -> InputPicture:
    """Return the form of a network's input that a `preprocessor_config.json` describes."""
    raw = read_config(path)
    for key in ("do_rescale", "do_normalize"):
        _require(path, key, raw.get(key, True), True)
    size = raw.get("size")
    if isinstance(size, dict):
        size = (size.get("height"), size.get("width"))
    if isinstance(size, int):
        size = (size, size)
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(_is_side(side) for side in size):
        raise ArtifactError(f"{path}: size is {raw.get('size')!r}; must be a height and a width")
    mean, std = (_channels(path, key, raw.get(key)) for key in ("image_mean", "image_std"))
    return InputPicture((size[0], size[1]), mean, std)


def _is_side(side: object) -> bool:
    return isinstance(side, int) and side > 0


def _channels(path: Path, key: str, value: Any) -> tuple[float, float, float]:
    """Return the three numbers under a key."""
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(number, int | float) for number in value):
        raise ArtifactError(f"{path}: {key} is {value!r}; must be three numbers")
    return value[0], value[1], value[2]


def _pair(size: Any) -> tuple[int, int]:
    """Return a height and a width, from both of them or from one number for both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _current_names(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the weights of a SegFormer under the names that the installed transformers uses."""
    names = {}
    for old in state:
        name = old
        for pattern, current in _OLD_SEGFORMER_NAMES:
            name = re.sub(pattern, current, name)
        names[name] = old
    return Renamed(state, names)


def _require(path: Path, key: str, value: object, expected: object, why: str = "") -> None:
    """Raise ArtifactError unless `value` is `expected`. why: where the expected value comes from."""
    if value != expected:
        reason = f" ({why})" if why else ""
        raise ArtifactError(f"{path}: {key} is {value!r}; must be {expected!r}{reason}")
