"""A model bundle on disk: every part of the method in one folder, loaded strictly or not at all.

The pipeline and each replica open a bundle and load only the parts that they need. `bundle_import.py` makes a bundle
from the released checkpoints, and the demo's training makes its own, both with `bundle_write.py`. The folder holds:

    manifest.json                   sizes and defaults (`manifest.py`)
    text_encoder/ vision_encoder/   config.json, model.safetensors
    inversion_adapter/              config.json, model.safetensors
    unet/ vae/                      config.json, diffusion_pytorch_model.safetensors
    tokenizer/                      vocab.json, merges.txt, tokenizer_config.json
    image_processor/                preprocessor_config.json
    scheduler/                      scheduler_config.json
    retrieval/                      open_clip_config.json, open_clip_model.safetensors, its tokenizer if not OpenCLIP's
    unet_turbo/                     optional: the student of the UNet, with the same files
    parser/ pose/                   optional: config.json, model.safetensors, preprocessor_config.json
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fashion_rag.artifacts import MANIFEST_FILE, joint_sha256, read_config, sha256
from fashion_rag.bundle_checks import (
    check_latents,
    check_person,
    check_student,
    check_text,
    check_vision,
    crop_of,
    downsampling_of,
)
from fashion_rag.catalogue import retrieval_encoder as retrieval
from fashion_rag.catalogue.build import Built, build
from fashion_rag.catalogue.catalogue import Catalogue
from fashion_rag.catalogue.garment_encoding import Encoders
from fashion_rag.catalogue.garments import INVERSION, RETRIEVAL, Garment
from fashion_rag.catalogue.retrieval_encoder import RetrievalEncoder
from fashion_rag.catalogue.storage import Root
from fashion_rag.catalogue.versions import live
from fashion_rag.denoising.noise_schedule import NoiseSchedule
from fashion_rag.errors import ArtifactError
from fashion_rag.manifest import DEMO_BUNDLE, Manifest
from fashion_rag.models.adapter import GarmentEncoder, GarmentNetwork
from fashion_rag.models.autoencoder import VAE
from fashion_rag.models.pretrained import (
    CLIP_FILE,
    CONFIG_FILE,
    DIFFUSERS_FILE,
    PROCESSOR_FILE,
    read_adapter,
    read_text_encoder,
    read_token_table,
    read_tokenizer,
    read_unet,
    read_vae,
    read_vision_encoder,
)
from fashion_rag.models.prompt import PromptEncoder
from fashion_rag.models.unet import UNet
from fashion_rag.person.files import (
    PARSER,
    POSE,
    parser_without_network,
    pose_estimator_without_network,
    read_parser,
    read_pose_estimator,
)
from fashion_rag.person.parser import HumanParser
from fashion_rag.person.pose_estimator import PoseEstimator

SCHEDULER_FILE = "scheduler_config.json"
WEIGHTS = {
    "text_encoder": CLIP_FILE,
    "vision_encoder": CLIP_FILE,
    "inversion_adapter": CLIP_FILE,
    "unet": DIFFUSERS_FILE,
    "vae": DIFFUSERS_FILE,
    "retrieval": retrieval.WEIGHTS_FILE,
}
STUDENT = "unet_turbo"
OPTIONAL_WEIGHTS = {STUDENT: DIFFUSERS_FILE, PARSER: CLIP_FILE, POSE: CLIP_FILE}

# Names the way in which garment pictures are brought to the model's shape. Another way needs another name.
PICTURE_RULE = "bordered"

# What diffusers takes where a VAE's configuration names no factor.
DEFAULT_SCALING_FACTOR = 0.18215

Device = str | torch.device


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. All its parts are there, apart from the optional ones, and their configurations fit each other.

    The `load_` methods read weights and return their part in evaluation mode, without gradients. They raise
    ArtifactError, naming file, keys and shapes, for weights that are not exactly those of the configuration.

    With `networks=False` a part comes without its networks, on the CPU, for callers who put compiled networks in their
    place. Neither are their weights read then, nor the code that would build them imported.
    """

    path: Path
    manifest: Manifest
    sampler: NoiseSchedule

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Return the bundle in the folder `path`.

        Raises ArtifactError if a part is missing or parts do not fit each other.
        """
        manifest = Manifest.read(path / MANIFEST_FILE)
        sampler = NoiseSchedule.from_diffusers(read_config(path / "scheduler" / SCHEDULER_FILE))
        for part, name in WEIGHTS.items():
            if not (path / part / name).is_file():
                raise ArtifactError(f"{path / part / name}: no such file")
        check_text(path, manifest)
        check_vision(path)
        check_latents(path, manifest)
        check_person(path)
        if manifest.student is not None:
            check_student(path / STUDENT, path / "unet")
        return cls(path, manifest, sampler)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Return the height and width of an edit's latents."""
        downsampling = downsampling_of(read_config(self.path / "vae" / CONFIG_FILE))
        height, width = self.manifest.image_size
        return height // downsampling, width // downsampling

    @property
    def text_width(self) -> int:
        """Return the width D of prompt embeddings [B, 77, D]."""
        width: int = read_config(self.path / "text_encoder" / CONFIG_FILE)["hidden_size"]
        return width

    def load_unet(self, device: Device = "cpu", dtype: torch.dtype = torch.float32) -> UNet:
        """Return the 27-channel UNet."""
        return UNet(read_unet(self.path / "unet", dtype)).eval().to(device, dtype)

    @property
    def has_student(self) -> bool:
        """Return whether there is a student of the UNet."""
        return self.manifest.student is not None

    def load_student(self, device: Device = "cpu", dtype: torch.dtype = torch.float32) -> UNet:
        """Return the student of the UNet, which must be there.

        Raises ArtifactError, too, for a student of another UNet than the bundle's.
        """
        student = self.manifest.student
        if student is None:
            raise ArtifactError(f"{self.path}: has no student; make one with `fashion-rag distill`")
        own = self.fingerprint("unet")
        if student.teacher != own:
            learned = f"learned from a UNet with the digest {student.teacher[:12]}"
            raise ArtifactError(f"{self.path / STUDENT}: {learned}; this bundle's is {own[:12]}, so distil it again")
        return UNet(read_unet(self.path / STUDENT, dtype)).eval().to(device, dtype)

    def load_vae(self, device: Device = "cpu", dtype: torch.dtype = torch.float32, *, networks: bool = True) -> VAE:
        """Return the VAE, whose halves are two networks."""
        if networks:
            return VAE.of(read_vae(self.path / "vae", dtype)).eval().to(device, dtype)
        config = read_config(self.path / "vae" / CONFIG_FILE)
        scaling_factor = config.get("scaling_factor", DEFAULT_SCALING_FACTOR)
        return VAE(nn.Module(), nn.Module(), scaling_factor, downsampling_of(config)).eval()

    def load_prompt_encoder(
        self, device: Device = "cpu", dtype: torch.dtype = torch.float32, *, networks: bool = True
    ) -> PromptEncoder:
        """Return the text encoder, which is a network, with its tokenizer and its table of tokens."""
        tokenizer = read_tokenizer(self.path / "tokenizer")
        if networks:
            text_model = read_text_encoder(self.path / "text_encoder", dtype)
            return PromptEncoder.of(tokenizer, text_model).eval().to(device, dtype)
        return PromptEncoder(tokenizer, read_token_table(self.path / "text_encoder"), nn.Module()).eval()

    def load_garment_encoder(
        self, device: Device = "cpu", dtype: torch.dtype = torch.float32, *, networks: bool = True
    ) -> GarmentEncoder:
        """Return the vision encoder and the inversion adapter, which together are one network."""
        network = nn.Module()
        if networks:
            vision_encoder = read_vision_encoder(self.path / "vision_encoder", dtype)
            adapter = read_adapter(self.path / "inversion_adapter", vision_encoder.config, dtype)
            network = GarmentNetwork(vision_encoder, adapter).to(device, dtype)
        processor = read_config(self.path / "image_processor" / PROCESSOR_FILE)
        return GarmentEncoder(
            network,
            picture_size=self.manifest.image_size,
            crop=crop_of(self.path),
            mean=processor["image_mean"],
            std=processor["image_std"],
        ).eval()

    def load_retrieval_encoder(self, device: Device = "cpu") -> RetrievalEncoder:
        """Return the encoder that catalogues are built and searched with, always float32."""
        return RetrievalEncoder.load(self.path / "retrieval", device, self.manifest.image_size)

    @property
    def has_parser(self) -> bool:
        """Return whether there is a human parser."""
        return (self.path / PARSER).exists()

    @property
    def has_pose_estimator(self) -> bool:
        """Return whether there is a pose estimator. A bundle that has one has a human parser, too."""
        return (self.path / POSE).exists()

    def load_parser(
        self, device: Device = "cpu", dtype: torch.dtype = torch.float32, *, networks: bool = True
    ) -> HumanParser:
        """Return the human parser, which must be there."""
        if not networks:
            return parser_without_network(self.path / PARSER)
        return read_parser(self.path / PARSER, dtype).to(device, dtype)

    def load_pose_estimator(
        self, device: Device = "cpu", dtype: torch.dtype = torch.float32, *, networks: bool = True
    ) -> PoseEstimator:
        """Return the pose estimator, which must be there."""
        if not networks:
            return pose_estimator_without_network(self.path / POSE)
        return read_pose_estimator(self.path / POSE, dtype).to(device, dtype)

    def load_encoders(self, device: Device = "cpu") -> Encoders:
        """Return the two encoders that garments of a catalogue are encoded with, always float32."""
        return Encoders(self.load_retrieval_encoder(device), self.load_garment_encoder(device))

    def open_catalogue(self, root: str | Path, cache: Path | None = None) -> Catalogue:
        """Return the catalogue in `root`, to be used with this bundle.

        cache: as for `Catalogue.open`. Raises ArtifactError as `check_catalogue`, before any weights are loaded, and as
        `Catalogue.open`.
        """
        fingerprints = self.fingerprints()
        self.check_catalogue(root, fingerprints)
        return Catalogue.open(root, self.load_retrieval_encoder(), fingerprints[INVERSION], cache)

    def check_catalogue(self, root: str | Path, fingerprints: Mapping[str, str] | None = None) -> None:
        """Raise ArtifactError unless the live version of the catalogue in `root` can be searched with this bundle.

        fingerprints: those of this bundle, for callers who have them already.
        """
        built_by = live(Root.at(root)).encoders.get(RETRIEVAL, "none")
        expected = (fingerprints or self.fingerprints())[RETRIEVAL]
        if built_by == expected:
            return
        opened = str(self.path)
        if self.path.resolve() == DEMO_BUNDLE.resolve():
            opened = "the packaged demo bundle, which is the default where no --bundle is given"
        raise ArtifactError(
            f"{root}: was built with another bundle than the one that was opened, {opened}; give the catalogue's own "
            f"with --bundle, or build the catalogue again with this one (its retrieval encoder is {built_by[:12]}, "
            f"this bundle's is {expected[:12]})"
        )

    def build_catalogue(
        self, root: str | Path, garments: Sequence[Garment], device: Device = "cpu", **options: Any
    ) -> Built:
        """Build the catalogue in `root` of `garments`, encoded with this bundle. Options and errors as for `build`."""
        return build(Root.at(root), garments, partial(self.load_encoders, device), self.fingerprints(), **options)

    def fingerprints(self) -> dict[str, str]:
        """Return the digests of the encoders that make a catalogue's vectors and pseudo-words, by kind of encoder.

        Older catalogues have pseudo-words and vectors of garment pictures that were stretched to the model's shape.
        Their pseudo-words are not what the same pictures give now, unless these had the shape. So PICTURE_RULE is part
        of the digest: they are left out, and computed where they are needed, until the next build makes both again.
        Until then, the old vectors stay in use. They are in the same space, and without them nothing can be found.
        """
        retrieval_weights = self.path / "retrieval" / WEIGHTS["retrieval"]
        inversion = self.fingerprint("vision_encoder", "inversion_adapter")
        sizes = f"{inversion} {self.manifest.image_size} {PICTURE_RULE}"
        return {RETRIEVAL: sha256(retrieval_weights), INVERSION: hashlib.sha256(sizes.encode()).hexdigest()}

    def fingerprint(self, *parts: str) -> str:
        """Return one SHA-256 of the weights and configurations of these parts."""
        weights = WEIGHTS | OPTIONAL_WEIGHTS
        return joint_sha256(self.path / part / name for part in parts for name in (CONFIG_FILE, weights[part]))
