"""Trains the demo bundle from nothing: draws the cases, then CLIP, VAE, adapter and UNet in turn, then writes it.

Called by `fashion-rag demo train`. All work lies in one folder and is resumed from there. On a CPU two processes of one
thread each run far faster than one of two threads, so a stage is spread over processes and their gradients averaged.
The UNet's stage is that of `fashion_rag.training`, on cases instead of a data set's photos.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPTokenizer

from fashion_rag.artifacts import write_json
from fashion_rag.bundle import Bundle, BundleParts, write_bundle
from fashion_rag.catalogue import retrieval_encoder as retrieval
from fashion_rag.data.image import vision_pixels
from fashion_rag.data.pose import heat_maps, to_latent
from fashion_rag.demo.model import recipe
from fashion_rag.demo.model.cases import Cases, draw_cases
from fashion_rag.demo.model.stages import PRECISION, AdapterStage, ClipStage, VaeStage, pictures
from fashion_rag.demo.model.tokenizer import write_tokenizer
from fashion_rag.denoising.noise_schedule import NoiseSchedule
from fashion_rag.errors import ArtifactError, InvalidRequest
from fashion_rag.models.autoencoder import VAE
from fashion_rag.models.prompt import PromptEncoder
from fashion_rag.models.unet import UNet
from fashion_rag.training.fit import TrainingPlan, fit
from fashion_rag.training.objective import EditStage, SampleMix, TrainingSet, networks
from fashion_rag.training.processes import Report, barrier, rank_and_world, run_processes, silent
from fashion_rag.training.run import even_share
from fashion_rag.training.watch import Reporting
from fashion_rag.weights import write_state

STAGES = ("vae", "clip", "adapter", "unet")
PLANS = {
    "vae": TrainingPlan(num_steps=3200, batch_size=16, learning_rate=2e-3),
    "clip": TrainingPlan(num_steps=1500, batch_size=64, learning_rate=2e-3, weight_decay=0.05),
    "adapter": TrainingPlan(num_steps=500, batch_size=64, learning_rate=1e-3),
    "unet": TrainingPlan(num_steps=14_000, batch_size=16, learning_rate=7e-4),
}
MIX = SampleMix(garment_shares=(0.15, 0.5, 0.1, 0.25), caption_share=0.1, outside_weight=0.1)
NUM_CASES = 12_000
BATCH = 64


def train(
    work: Path,
    stages: Sequence[str] = STAGES,
    num_steps: Mapping[str, int] | None = None,
    num_cases: int = NUM_CASES,
    num_processes: int | None = None,
    seed: int = 0,
    report: Report = silent,
) -> None:
    """Run `stages` in `work`, going on from the checkpoints found there. A GPU is used if there is one.

    num_steps: replaces a stage's number of steps. `report(stage, step, of, loss)` is called about once a second.
    Raises InvalidRequest for an unknown stage, ArtifactError if a stage lacks the result of an earlier one.
    """
    for stage in stages:
        if stage not in STAGES:
            raise InvalidRequest("stage", stage, f"must be one of {', '.join(STAGES)}")
    work.mkdir(parents=True, exist_ok=True)
    world = num_processes or (1 if torch.cuda.is_available() else even_share(PLANS["unet"], os.cpu_count() or 1))
    drawing = partial(draw_cases, work, num_cases, recipe.MANIFEST.image_size, seed)
    drawing(num_workers=os.cpu_count() or 1, progress=lambda done, total: report("cases", done, total, 0.0))
    plans = {
        name: dataclasses.replace(PLANS[name], num_steps=(num_steps or {}).get(name, PLANS[name].num_steps))
        for name in stages
    }
    run_processes(partial(_run, work, plans, num_cases, seed), world, work, report)


def _run(work: Path, plans: Mapping[str, TrainingPlan], num_cases: int, seed: int, report: Report) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = draw_cases(work, num_cases, recipe.MANIFEST.image_size, seed)
    trainer = _Trainer(work, cases, device)
    for name, plan in plans.items():
        torch.manual_seed(seed)
        fit(trainer.stage(name), plan, work, seed, Reporting(report))


class _Trainer:
    """Builds a stage from the results of the earlier ones in `work`."""

    def __init__(self, work: Path, cases: Cases, device: torch.device) -> None:
        self.work, self.cases, self.device = work, cases, device
        self.rank, self.world = rank_and_world()

    def stage(self, name: str) -> Any:
        match name:
            case "vae":
                return VaeStage(self.cases, self.device)
            case "clip":
                return self._clip()
            case "adapter":
                clip = self._trained(self._clip())
                return AdapterStage(self.cases, self._hidden(clip), clip, self._prompts(clip), self.device)
        clip = self._trained(self._clip())
        hidden, prompts = self._hidden(clip), self._prompts(clip)
        adapter = self._trained(AdapterStage(self.cases, hidden, clip, prompts, self.device)).network
        network = networks(UNet(recipe.make_unet()), adapter)
        sampler = NoiseSchedule.from_diffusers(recipe.SCHEDULER)
        return EditStage(network, self._training_set(hidden), prompts, sampler, MIX, self.device, PRECISION)

    def _tokenizer(self) -> Any:
        folder = self.work / "tokenizer"
        if self.rank == 0 and not folder.exists():
            write_tokenizer(folder.with_name("tokenizer.partial"), recipe.VOCAB_SIZE).rename(folder)
        barrier()
        return CLIPTokenizer.from_pretrained(folder)

    def _clip(self) -> ClipStage:
        return ClipStage(self.cases, self._tokenizer(), self.device)

    def _prompts(self, clip: ClipStage) -> PromptEncoder:
        prompts = PromptEncoder(self._tokenizer(), recipe.text_encoder_of(clip.clip))
        return prompts.to(self.device)

    def _trained(self, stage: Any) -> Any:
        """Return `stage` with the averaged weights of its checkpoint."""
        stage.network.load_state_dict(_average(self.work, stage.name))
        stage.network.eval()
        return stage

    def _hidden(self, clip: ClipStage) -> NDArray[np.float16]:
        """Return the vision tower's hidden states of every in-shop picture, float16 [N, 3, T, D]."""
        vision = recipe.vision_encoder_of(clip.clip).to(self.device)
        size = recipe.MANIFEST.image_size

        def rows(start: int) -> NDArray[np.float16]:
            garments = self.cases.garments[start : start + BATCH]
            flat = [Image.fromarray(one) for trio in garments for one in trio]
            args = (size, recipe.VISION_IMAGE, recipe.CLIP_MEAN, recipe.CLIP_STD)
            pixels = torch.stack([vision_pixels(one, *args) for one in flat]).to(self.device)
            hidden = vision(pixel_values=pixels).last_hidden_state.unflatten(0, (len(garments), 3))
            return hidden.half().cpu().numpy()  # type: ignore[no-any-return]

        return self._computed("hidden", "clip", rows)

    def _training_set(self, hidden: NDArray[np.float16]) -> TrainingSet:
        vae = VAE(self._trained(VaeStage(self.cases, self.device)).network)
        size = recipe.MANIFEST.image_size
        latent_size = (size[0] // vae.downsampling, size[1] // vae.downsampling)

        def moments(start: int, masked: bool) -> NDArray[np.float16]:
            image = pictures(self.cases.images[start : start + BATCH], self.device)
            if masked:
                hole = torch.from_numpy(self.cases.masks[start : start + BATCH]).to(self.device)
                image = image * (1 - hole[:, None].float())
            return vae.encoder(image).half().cpu().numpy()  # type: ignore[no-any-return]

        def pose(start: int) -> NDArray[np.float16]:
            points = self.cases.keypoints[start : start + BATCH]
            maps = torch.stack([heat_maps(one, size, recipe.MANIFEST.pose_sigma) for one in points])
            return to_latent(maps, latent_size).half().numpy()

        plain = self._computed("moments", "vae", lambda start: moments(start, masked=False))
        num_cases, num_garments, *shape = hidden.shape
        texts = self.cases.texts
        return TrainingSet(
            moments=plain,
            masked_moments=self._computed("masked_moments", "vae", lambda start: moments(start, masked=True)),
            mask=self.cases.masks[:, None, :: vae.downsampling, :: vae.downsampling],
            pose=self._computed("pose", None, pose),
            hidden=hidden.reshape(-1, *shape),
            # A case's garments lie in the order that is wanted: worn, sibling, cousin.
            garments=np.arange(num_cases * num_garments).reshape(num_cases, num_garments),
            categories=[words["category"] for words in texts],
            captions=[(words["kind"],) * 2 + (words["caption_0"],) * 3 for words in texts],
            scaling_factor=scaling_factor(plain),
        )

    @torch.inference_mode()
    def _computed(
        self, name: str, source: str | None, rows: Callable[[int], NDArray[np.float16]]
    ) -> NDArray[np.float16]:
        """Return what `rows` gives for every case, computed once for the checkpoint `source` it was made with."""
        stamp = (self.work / f"{source}.pt").stat().st_mtime_ns if source else 0
        path = self.work / f"{name}-{len(self.cases)}-{stamp}.npy"
        starts = range(0, len(self.cases), BATCH)
        if not path.exists():
            mine = {str(start): rows(start) for start in starts[self.rank :: self.world]}
            np.savez(self.work / f"{name}.part{self.rank}.npz", allow_pickle=False, **mine)
            barrier()
            if self.rank == 0:
                self._join(name, path)
        barrier()
        return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]

    def _join(self, name: str, path: Path) -> None:
        """Make `path`, in place of an older one of this name, from what each process has computed."""
        parts: dict[int, NDArray[np.float16]] = {}
        for file in sorted(self.work.glob(f"{name}.part*.npz")):
            with np.load(file) as content:
                parts |= {int(start): content[start] for start in content.files}
            file.unlink()
        for old in self.work.glob(f"{name}-*.npy"):
            old.unlink()
        np.save(path.with_suffix(".partial.npy"), np.concatenate([parts[start] for start in sorted(parts)]))
        path.with_suffix(".partial.npy").rename(path)


def package(work: Path, out: Path) -> Bundle:
    """Return the bundle in `out`, made of the stages trained in `work`; weights stored as float16."""
    with tempfile.TemporaryDirectory() as scratch:
        clip, vae = recipe.make_clip(), recipe.make_vae()
        clip.load_state_dict(_average(work, "clip", "clip."))
        vae.load_state_dict(_average(work, "vae"))
        (moments,) = work.glob("moments-*.npy")
        vae.register_to_config(scaling_factor=scaling_factor(np.load(moments, mmap_mode="r")))
        unet, adapter = recipe.make_unet(), recipe.make_adapter()
        unet.load_state_dict(_average(work, "unet", "unet.unet."))
        adapter.load_state_dict(_average(work, "unet", "adapter."))
        folder = Path(scratch)
        tokenizer = write_tokenizer(folder / "tokenizer", recipe.VOCAB_SIZE)
        towers = write_tokenizer(folder / "retrieval", recipe.VOCAB_SIZE)
        write_json(towers / retrieval.CONFIG_FILE, {"model_cfg": recipe.CLIP, "preprocess_cfg": recipe.PREPROCESS})
        write_state(towers / retrieval.WEIGHTS_FILE, clip.state_dict())
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
        )
        return write_bundle(out, recipe.MANIFEST, parts, dtype=torch.float16)


def _average(work: Path, stage: str, prefix: str = "") -> dict[str, torch.Tensor]:
    """Return the averaged weights of a stage's checkpoint whose names begin with `prefix`, without it."""
    path = work / f"{stage}.pt"
    if not path.exists():
        raise ArtifactError(f"{path}: the stage {stage!r} has not been trained yet")
    saved = torch.load(path, weights_only=True, map_location="cpu")["average"]
    return {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}


def scaling_factor(moments: NDArray[np.float16]) -> float:
    """Return what brings the VAE's latents to unit spread, from moments [N, 8, h, w]."""
    return round(1.0 / float(moments[:2000, :4].astype(np.float32).std()), 5)
