"""From the folder of a training to a bundle. `fashion-rag demo train` calls it at its end."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fashion_rag.artifacts import write_json
from fashion_rag.bundle import Bundle
from fashion_rag.bundle_write import BundleParts, write_bundle
from fashion_rag.catalogue import retrieval_encoder as retrieval
from fashion_rag.demo.model import recipe
from fashion_rag.demo.model.photo_parts import write_photo_parts
from fashion_rag.demo.model.tokenizer import write_tokenizer
from fashion_rag.errors import ArtifactError
from fashion_rag.person.files import PARSER, POSE
from fashion_rag.person_import import replace_parts
from fashion_rag.weights import write_state


def package(work: Path, out: Path) -> Bundle:
    """Write the bundle of the stages trained in `work` to `out`, with float16 weights, and return it."""
    with tempfile.TemporaryDirectory() as scratch:
        clip, vae = recipe.make_clip(), recipe.make_vae()
        clip.load_state_dict(average_of(work, "clip", "clip."))
        vae.load_state_dict(average_of(work, "vae"))
        (moments,) = work.glob("moments-*.npy")
        vae.register_to_config(scaling_factor=scaling_factor(np.load(moments, mmap_mode="r")))
        unet, adapter = recipe.make_unet(), recipe.make_adapter()
        unet.load_state_dict(average_of(work, "unet", "unet.unet."))
        adapter.load_state_dict(average_of(work, "unet", "adapter."))
        folder = Path(scratch)
        tokenizer = write_tokenizer(folder / "tokenizer", recipe.VOCAB_SIZE)
        towers = write_tokenizer(folder / "retrieval", recipe.VOCAB_SIZE)
        write_json(towers / retrieval.CONFIG_FILE, {"model_cfg": recipe.CLIP, "preprocess_cfg": recipe.PREPROCESS})
        write_state(towers / retrieval.WEIGHTS_FILE, clip.state_dict())
        photo_parts = _photo_parts(work, folder)
        parts = BundleParts(
            text_encoder=recipe.text_encoder_of(clip),
            tokenizer=tokenizer,
            vision_encoder=recipe.vision_encoder_of(clip),
            image_mean=recipe.CLIP_MEAN,
            image_std=recipe.CLIP_STD,
            inversion_adapter=adapter,
            unet=unet,
            vae=vae,
            scheduler=recipe.SCHEDULER,
            retrieval=towers,
            parser=photo_parts[PARSER],
            pose=photo_parts[POSE],
        )
        return write_bundle(out, recipe.MANIFEST, parts, dtype=torch.float16)


def add_photo_parts(work: Path, path: Path) -> Bundle:
    """Put the parser and the pose estimator trained in `work` into the bundle in the folder `path`, and return it.

    Their weights are stored as float16. All other files of the bundle stay as they are.
    """
    bundle = Bundle.open(path)
    with tempfile.TemporaryDirectory() as scratch:
        return replace_parts(path, _photo_parts(work, Path(scratch)), bundle.manifest.licence)


def _photo_parts(work: Path, folder: Path) -> dict[str, Path]:
    """Write the parser and the pose estimator trained in `work` to new folders in `folder`, and return these."""
    parser, pose = recipe.make_parser(), recipe.make_pose()
    parser.load_state_dict(average_of(work, "parser"))
    pose.load_state_dict(average_of(work, "pose"))
    return write_photo_parts(folder, parser.eval(), pose.eval())


def average_of(work: Path, stage: str, prefix: str = "") -> dict[str, torch.Tensor]:
    """Return the averaged weights of a stage whose names begin with `prefix`, under the rest of their names.

    Raises ArtifactError if the stage has not been trained in `work`.
    """
    path = work / f"{stage}.pt"
    if not path.exists():
        raise ArtifactError(f"{path}: the stage {stage!r} has not been trained yet; train it first")
    saved = torch.load(path, weights_only=True, map_location="cpu")["average"]
    return {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}


def scaling_factor(moments: NDArray[np.float16]) -> float:
    """Return the factor that gives the VAE's latents a standard deviation of 1, from moments [N, 8, h, w]."""
    return round(1.0 / float(moments[:2000, :4].astype(np.float32).std()), 5)
