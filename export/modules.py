"""The networks of a bundle that are compiled, and the inputs and outputs of each.

There are six, two more where the bundle has a student, and one more for each of human parser and pose estimator that it
has. The exports to ONNX and TensorRT, and the modules that run the exported files, share this description.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fashion_rag.artifacts import read_config
from fashion_rag.bundle import STUDENT, Bundle
from fashion_rag.errors import FashionRAGError
from fashion_rag.models.pretrained import CONFIG_FILE
from fashion_rag.models.prompt import MAX_TOKENS
from fashion_rag.models.unet import IN_CHANNELS, LATENT_CHANNELS, ShallowUNet, WholeUNet, feature_channels
from fashion_rag.person.files import PARSER, POSE, check_parser, check_pose_estimator, heat_map_size, logits_size
from fashion_rag.person.labels import NUM_COCO_POINTS


@dataclass(frozen=True)
class TensorSpec:
    """The shape and type of an input or output. The shape lacks the batch, which comes first and is dynamic."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class ModuleSpec:
    """A network with its inputs and outputs, which are float32 (timesteps int64) whatever the precision inside.

    inputs, outputs: by name, in the order of the call.
    load: takes a bundle and a dtype, and returns the PyTorch module with such weights, on the CPU.
    parts: the folders of the bundle whose weights it has.
    """

    name: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    load: Callable[[Bundle, torch.dtype], nn.Module]
    parts: tuple[str, ...]

    def weights(self, bundle: Bundle) -> str:
        """Return a digest of the module's weights in `bundle`, or an empty text for a module without weights."""
        return bundle.fingerprint(*self.parts) if self.parts else ""


def module_specs(bundle: Bundle) -> dict[str, ModuleSpec]:
    """Return the networks of `bundle` by name, at the bundle's own sizes."""
    image = TensorSpec((3, *bundle.manifest.image_size))
    latents = TensorSpec((LATENT_CHANNELS, *bundle.latent_size))
    text = TensorSpec((MAX_TOKENS, bundle.text_width))
    vision = read_config(bundle.path / "vision_encoder" / CONFIG_FILE)
    crop = vision.get("vision_config", vision)["image_size"]
    denoised = {
        "sample": TensorSpec((IN_CHANNELS, *bundle.latent_size)),
        "timestep": TensorSpec((), torch.int64),
        "prompt_embeds": text,
    }
    features = feature_channels(read_config(bundle.path / "unet" / CONFIG_FILE))
    # The 4 channels of noise come first, then the features.
    noise_and_features = {"noise_pred_and_features": TensorSpec((LATENT_CHANNELS + features, *bundle.latent_size))}
    with_features = denoised | {"features": TensorSpec((features, *bundle.latent_size))}
    specs = [
        ModuleSpec(
            "unet",
            denoised,
            noise_and_features,
            lambda bundle, dtype: WholeUNet(bundle.load_unet(dtype=dtype)),
            ("unet",),
        ),
        ModuleSpec(
            "unet_shallow",
            with_features,
            {"noise_pred": latents},
            lambda bundle, dtype: ShallowUNet(bundle.load_unet(dtype=dtype)),
            ("unet",),
        ),
        ModuleSpec(
            "vae_encoder",
            {"image": image},
            # The mean and the log variance.
            {"moments": TensorSpec((2 * LATENT_CHANNELS, *bundle.latent_size))},
            lambda bundle, dtype: bundle.load_vae(dtype=dtype).encoder,
            ("vae",),
        ),
        ModuleSpec(
            "vae_decoder",
            {"latents": latents},
            {"image": image},
            lambda bundle, dtype: bundle.load_vae(dtype=dtype).decoder,
            ("vae",),
        ),
        ModuleSpec(
            "text_encoder",
            {"token_embeds": text},
            {"prompt_embeds": text},
            lambda bundle, dtype: bundle.load_prompt_encoder(dtype=dtype).text_encoder,
            ("text_encoder",),
        ),
        ModuleSpec(
            "garment_encoder",
            {"pixels": TensorSpec((3, crop, crop))},
            {"pseudo_words": TensorSpec((bundle.manifest.num_pseudo_words, bundle.text_width))},
            lambda bundle, dtype: bundle.load_garment_encoder(dtype=dtype).network,
            ("vision_encoder", "inversion_adapter"),
        ),
    ]
    if bundle.has_student:
        specs += [
            ModuleSpec(
                STUDENT,
                denoised,
                noise_and_features,
                lambda bundle, dtype: WholeUNet(bundle.load_student(dtype=dtype)),
                (STUDENT,),
            ),
            ModuleSpec(
                f"{STUDENT}_shallow",
                with_features,
                {"noise_pred": latents},
                lambda bundle, dtype: ShallowUNet(bundle.load_student(dtype=dtype)),
                (STUDENT,),
            ),
        ]
    return {spec.name: spec for spec in (*specs, *_person_specs(bundle))}


def _person_specs(bundle: Bundle) -> list[ModuleSpec]:
    """Return the human parser and the pose estimator of `bundle`, where it has them."""
    specs = []
    if bundle.has_parser:
        segformer, picture = check_parser(bundle.path / PARSER)
        specs.append(
            ModuleSpec(
                "parser",
                {"pixels": TensorSpec((3, *picture.size))},
                {"logits": TensorSpec((segformer.num_labels, *logits_size(segformer, picture.size)))},
                lambda bundle, dtype: bundle.load_parser(dtype=dtype).network,
                (PARSER,),
            )
        )
    if bundle.has_pose_estimator:
        vitpose, picture = check_pose_estimator(bundle.path / POSE)
        specs.append(
            ModuleSpec(
                "pose",
                {"pixels": TensorSpec((3, *picture.size))},
                {"heat_maps": TensorSpec((NUM_COCO_POINTS, *heat_map_size(vitpose)))},
                lambda bundle, dtype: bundle.load_pose_estimator(dtype=dtype).network,
                (POSE,),
            )
        )
    return specs


def blank_inputs(spec: ModuleSpec, num_rows: int, device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
    """Return zeros in the shapes of the module's inputs."""
    return blank_tensors(spec.inputs, num_rows, device)


def blank_tensors(tensors: Mapping[str, TensorSpec], num_rows: int, device: torch.device | str) -> tuple[Tensor, ...]:
    """Return zeros of `num_rows` rows in the shapes and types of `tensors`."""
    return tuple(torch.zeros(num_rows, *spec.shape, dtype=spec.dtype, device=device) for spec in tensors.values())


def check_inputs(spec: ModuleSpec, inputs: Sequence[Tensor]) -> int:
    """Return the number of rows of `inputs`.

    Raises FashionRAGError, naming the input, for inputs that the module does not take.
    """
    if len(inputs) != len(spec.inputs):
        raise FashionRAGError(f"{spec.name}: got {len(inputs)} inputs; must be {', '.join(spec.inputs)}")
    num_rows = inputs[0].shape[0] if inputs[0].ndim else 0
    for (name, wanted), tensor in zip(spec.inputs.items(), inputs, strict=True):
        shape = (num_rows, *wanted.shape)
        if tuple(tensor.shape) != shape or tensor.dtype != wanted.dtype or num_rows < 1:
            got, expected = f"{tensor.dtype} {list(tensor.shape)}", f"{wanted.dtype} {list(shape)}"
            raise FashionRAGError(f"{spec.name}: {name}: got {got}; must be {expected}, of 1 or more rows")
    return num_rows
