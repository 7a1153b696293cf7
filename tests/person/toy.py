"""Small networks for tests: random ones in the layout of transformers, and two that go by the colours they see."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
)

from fashion_rag.artifacts import write_json
from fashion_rag.person.labels import CLASSES
from fashion_rag.weights import write_state

PARSER_SIZE, POSE_SIZE = (64, 48), (64, 48)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
JOINTS = ("Nose", "L_Eye", "R_Eye", "L_Ear", "R_Ear", "L_Shoulder", "R_Shoulder", "L_Elbow", "R_Elbow", "L_Wrist",
          "R_Wrist", "L_Hip", "R_Hip", "L_Knee", "R_Knee", "L_Ankle", "R_Ankle")  # fmt: skip
# The colours of a red head, a yellow shirt and pink trousers, and of the grey wall behind them. Where two of a person's
# colours blend, the blend is far from grey.
COLOURS = {
    "background": (128, 128, 128),
    "head": (255, 0, 0),
    "upper_clothes": (255, 255, 0),
    "pants": (255, 0, 255),
}


def processor(size: tuple[int, int], **changes: Any) -> dict[str, Any]:
    """Return the content of a `preprocessor_config.json`."""
    height, width = size
    return {
        "do_normalize": True,
        "do_rescale": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "size": {"height": height, "width": width},
    } | changes


def make_segformer(names: tuple[str, ...] = CLASSES) -> SegformerForSemanticSegmentation:
    config = SegformerConfig(
        depths=[1] * 4,
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1] * 4,
        sr_ratios=[4, 2, 1, 1],
        strides=[4, 2, 2, 2],
        mlp_ratios=[2] * 4,
        decoder_hidden_size=16,
        id2label=dict(enumerate(names)),
        architectures=["SegformerForSemanticSegmentation"],
    )
    network = SegformerForSemanticSegmentation(config).eval()
    # Random numbers in place of means of 0 and variances of 1, which would hide that they were not loaded.
    nn.init.uniform_(network.decode_head.batch_norm.running_mean, -1, 1)
    nn.init.uniform_(network.decode_head.batch_norm.running_var, 0.5, 2)
    for weight in network.parameters():
        # With transformers' own small numbers, all pixels would be of one class.
        if weight.ndim > 1:
            nn.init.normal_(weight, std=0.5)
    return network


def make_vitpose() -> VitPoseForPoseEstimation:
    backbone = VitPoseBackboneConfig(
        image_size=list(POSE_SIZE),
        patch_size=[16, 16],
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        mlp_ratio=2,
        out_indices=[1],
    )
    config = VitPoseConfig(
        backbone_config=backbone, id2label=dict(enumerate(JOINTS)), architectures=["VitPoseForPoseEstimation"]
    )
    return VitPoseForPoseEstimation(config).eval()


def write_part(folder: Path, network: Any, size: tuple[int, int], readme: str = "") -> Path:
    """Return `folder`, now holding a network as transformers publishes it. readme: the model card; "" = none."""
    folder.mkdir(parents=True)
    network.config.to_json_file(folder / "config.json", use_diff=False)
    write_state(folder / "model.safetensors", network.state_dict())
    write_json(folder / "preprocessor_config.json", processor(size))
    if readme:
        (folder / "README.md").write_text(readme)
    return folder


def write_parser(folder: Path, readme: str = "", seed: int = 0) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return write_part(folder, make_segformer(), PARSER_SIZE, readme)


def write_pose_estimator(folder: Path, readme: str = "", seed: int = 0) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return write_part(folder, make_vitpose(), POSE_SIZE, readme)


def levels(pixels: Tensor) -> Tensor:
    """Return the colours of normalised pixels, from 0 to 255."""
    return (pixels * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255


class ColourParser(nn.Module):
    """A network that knows the classes of COLOURS by the nearest colour; it notes how many pictures each call has."""

    def __init__(self) -> None:
        super().__init__()
        self.num_pictures: list[int] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self.num_pictures.append(len(pixels))
        known = torch.tensor(list(COLOURS.values())).float()
        distances = (levels(pixels)[:, None] - known[None, :, :, None, None]).abs().sum(2)
        shares = torch.zeros(len(pixels), len(CLASSES), *pixels.shape[2:])
        shares[:, [CLASSES.index(name) for name in COLOURS]] = (
            functional.one_hot(distances.argmin(1), len(COLOURS)).movedim(-1, 1).float()
        )
        return functional.avg_pool2d(shares, 2).clamp(1e-4).log()


class ColourPose(nn.Module):
    """A network that finds its joints at the middle of what is red."""

    def forward(self, pixels: Tensor) -> Tensor:
        colours = levels(pixels)
        red = (colours[:, 0] - colours[:, 1] - colours[:, 2]).clamp(0)
        height, width = (side // 4 for side in red.shape[1:])
        # The outermost pixels of heat maps and of the input show the same places.
        row = middle(red.sum(2)) * (height - 1)
        column = middle(red.sum(1)) * (width - 1)
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        heat = torch.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 4.5)
        return heat[:, None].repeat(1, len(JOINTS), 1, 1)


def middle(amounts: Tensor) -> Tensor:
    """Return the middle of amounts [B, N] along their axis, from 0 to 1, as [B, 1, 1]."""
    positions = torch.linspace(0, 1, amounts.shape[1])
    return ((amounts * positions).sum(1) / amounts.sum(1).clamp(1e-6)).view(-1, 1, 1)
