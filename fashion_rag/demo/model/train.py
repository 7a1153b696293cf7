"""The training of the demo bundle from nothing: draw the cases, and train the networks in turn.

`fashion-rag demo train` calls it. Everything that it makes lies in one folder, so that a later run can go on from
there. On a CPU, two processes with a thread each are far faster than one process with two threads. A stage therefore
runs in several processes, whose gradients are averaged. The stage of the UNet is that of `fashion_rag.training`, with
the cases in place of a data set's photos.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPTokenizer

from fashion_rag.data.image import vision_pixels
from fashion_rag.data.pose import heat_maps, to_latent
from fashion_rag.demo.model import recipe
from fashion_rag.demo.model.cases import TrainingCases, draw_cases
from fashion_rag.demo.model.packaging import average_of, scaling_factor
from fashion_rag.demo.model.photo_cases import PhotoCase, draw_photo_cases
from fashion_rag.demo.model.photo_stages import ParserStage, PoseStage
from fashion_rag.demo.model.stages import PRECISION, AdapterStage, ClipStage, VaeStage, pictures
from fashion_rag.demo.model.tokenizer import write_tokenizer
from fashion_rag.denoising.noise_schedule import NoiseSchedule
from fashion_rag.errors import InvalidRequest
from fashion_rag.models.autoencoder import VAE
from fashion_rag.models.prompt import PromptEncoder
from fashion_rag.models.unet import UNet
from fashion_rag.training.fit import TrainingPlan, fit
from fashion_rag.training.objective import EditStage, SampleMix, TrainingSet, networks
from fashion_rag.training.processes import Report, barrier, rank_and_world, run_processes, silent
from fashion_rag.training.run import even_share
from fashion_rag.training.watch import Reporting

EDIT_STAGES = ("vae", "clip", "adapter", "unet")
# These learn from drawn photos, and need no stage of editing. The parser learns from pictures of three sizes in turn.
PHOTO_STAGES = (*recipe.PARSER_STAGES, "pose")
STAGES = EDIT_STAGES + PHOTO_STAGES
_photo_plan = partial(TrainingPlan, batch_size=16, ema_decay=0.998, precision="float32")
PLANS = {
    "vae": TrainingPlan(num_steps=3200, batch_size=16, learning_rate=2e-3),
    "clip": TrainingPlan(num_steps=1500, batch_size=64, learning_rate=2e-3, weight_decay=0.05),
    "adapter": TrainingPlan(num_steps=500, batch_size=64, learning_rate=1e-3),
    "unet": TrainingPlan(num_steps=17_500, batch_size=16, learning_rate=7e-4),
    "small_parser": _photo_plan(num_steps=2500, learning_rate=2e-3),
    "middle_parser": _photo_plan(num_steps=6500, learning_rate=1.5e-3, decay_share=0.4),
    "parser": _photo_plan(num_steps=2400, batch_size=8, learning_rate=8e-4, decay_share=0.7),
    "pose": _photo_plan(num_steps=6500, learning_rate=1.5e-3),
}
MIX = SampleMix(garment_shares=(0.15, 0.5, 0.1, 0.25), caption_share=0.1, outside_weight=0.1)
NUM_CASES = 12_000
NUM_PHOTOS = 4000
BATCH = 64


def train(
    work: Path,
    stages: Sequence[str] = STAGES,
    num_steps: Mapping[str, int] | None = None,
    num_cases: int = NUM_CASES,
    num_photos: int = NUM_PHOTOS,
    num_processes: int | None = None,
    seed: int = 0,
    report: Report = silent,
) -> None:
    """Run `stages` in the folder `work`, starting from the checkpoints in it. A GPU is used if there is one.

    num_steps: by stage, a number of steps in place of the plan's. num_processes: by default 1 on a GPU, on a CPU as
    many as share a batch evenly. report: called about once a second with the stage, the step, the number of steps and
    the loss. Raises InvalidRequest for an unknown stage, and ArtifactError if a stage needs one that was not trained.
    """
    for stage in stages:
        if stage not in STAGES:
            raise InvalidRequest("stage", stage, f"must be one of {', '.join(STAGES)}")
    work.mkdir(parents=True, exist_ok=True)
    num_cpus = os.cpu_count() or 1
    if not num_processes:
        num_processes = 1 if torch.cuda.is_available() else even_share(PLANS["unet"], num_cpus)
    if not set(stages).isdisjoint(EDIT_STAGES):
        draw_cases(
            work,
            num_cases,
            recipe.MANIFEST.image_size,
            seed,
            num_workers=num_cpus,
            progress=lambda done, total: report("cases", done, total, 0.0),
        )
    if not set(stages).isdisjoint(PHOTO_STAGES):
        draw_photo_cases(
            work,
            num_photos,
            seed,
            num_workers=num_cpus,
            progress=lambda done, total: report("photos", done, total, 0.0),
        )
    plans = {name: PLANS[name] for name in stages}
    for name, count in (num_steps or {}).items():
        if name in plans:
            plans[name] = dataclasses.replace(plans[name], num_steps=count)
    run_processes(partial(_run, work, plans, (num_cases, num_photos), seed), num_processes, work, report)


def _run(work: Path, plans: Mapping[str, TrainingPlan], num_drawn: tuple[int, int], seed: int, report: Report) -> None:
    """Train the stages of the plans in one of the processes. num_drawn: how many cases and photos are drawn."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = _Trainer(work, num_drawn, seed, device)
    for name, plan in plans.items():
        torch.manual_seed(seed)
        fit(trainer.stage(name), plan, work, seed, Reporting(report))


class _Trainer:
    """A builder of stages from the results of the earlier ones in `work`."""

    def __init__(self, work: Path, num_drawn: tuple[int, int], seed: int, device: torch.device) -> None:
        self.work, self.num_drawn, self.seed, self.device = work, num_drawn, seed, device
        self.rank, self.world = rank_and_world()

    @cached_property
    def cases(self) -> TrainingCases:
        """Return the cases of the stages of editing."""
        return draw_cases(self.work, self.num_drawn[0], recipe.MANIFEST.image_size, self.seed)

    @cached_property
    def photos(self) -> list[PhotoCase]:
        """Return the cases of the parser and the pose estimator."""
        return draw_photo_cases(self.work, self.num_drawn[1], self.seed)

    def stage(self, name: str) -> Any:
        """Return the stage `name`, ready to be trained."""
        match name:
            case "vae":
                return VaeStage(self.cases, self.device)
            case "clip":
                return self._clip()
            case "adapter":
                return self._adapter(self._trained(self._clip()))
            case name if name in recipe.PARSER_STAGES:
                return self._parser(name)
            case "pose":
                return PoseStage(self.photos, self.device)
        clip = self._trained(self._clip())
        adapter_stage = self._trained(self._adapter(clip))
        return EditStage(
            networks(UNet(recipe.make_unet()), adapter_stage.network),
            self._training_set(adapter_stage.hidden),
            adapter_stage.prompts,
            NoiseSchedule.from_diffusers(recipe.SCHEDULER),
            MIX,
            self.device,
            PRECISION,
        )

    def _parser(self, name: str) -> ParserStage:
        """Return a stage of the parser, which begins with the weights of the stage before, if there is one."""
        parser = ParserStage(self.photos, self.device, name, recipe.PARSER_STAGES[name])
        names = list(recipe.PARSER_STAGES)
        if name != names[0]:
            parser.network.load_state_dict(average_of(self.work, names[names.index(name) - 1]))
        return parser

    def _tokenizer(self) -> Any:
        folder = self.work / "tokenizer"
        if self.rank == 0 and not folder.exists():
            write_tokenizer(folder.with_name("tokenizer.partial"), recipe.VOCAB_SIZE).rename(folder)
        barrier()
        return CLIPTokenizer.from_pretrained(folder)

    def _clip(self) -> ClipStage:
        return ClipStage(self.cases, self._tokenizer(), self.device)

    def _adapter(self, clip: ClipStage) -> AdapterStage:
        return AdapterStage(
            self.cases,
            hidden=self._hidden(clip),
            clip_stage=clip,
            prompts=self._prompts(clip),
            device=self.device,
        )

    def _prompts(self, clip: ClipStage) -> PromptEncoder:
        prompts = PromptEncoder.of(self._tokenizer(), recipe.text_encoder_of(clip.clip))
        return prompts.to(self.device)

    def _trained(self, stage: Any) -> Any:
        """Load the averaged weights of the stage's checkpoint into its network, and return the stage."""
        stage.network.load_state_dict(average_of(self.work, stage.name))
        stage.network.eval()
        return stage

    def _hidden(self, clip: ClipStage) -> NDArray[np.float16]:
        """Return the vision tower's hidden states of every in-shop picture, float16 [N, 3, T, D]."""
        vision = recipe.vision_encoder_of(clip.clip).to(self.device)
        size = recipe.MANIFEST.image_size

        def rows(start: int) -> NDArray[np.float16]:
            garments = self.cases.garments[start : start + BATCH]
            images = [Image.fromarray(garment) for garment in garments.reshape(-1, *garments.shape[2:])]
            rule = (size, recipe.VISION_IMAGE, recipe.CLIP_MEAN, recipe.CLIP_STD)
            pixels = torch.stack([vision_pixels(image, *rule) for image in images]).to(self.device)
            hidden = vision(pixel_values=pixels).last_hidden_state.unflatten(0, (len(garments), 3))
            return hidden.half().cpu().numpy()  # type: ignore[no-any-return]

        return self._computed("hidden", "clip", rows)

    def _training_set(self, hidden: NDArray[np.float16]) -> TrainingSet:
        """Return the cases as the UNet's stage needs them."""
        vae = VAE.of(self._trained(VaeStage(self.cases, self.device)).network)
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
            maps = torch.stack([heat_maps(person, size, recipe.MANIFEST.pose_sigma) for person in points])
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
            # TrainingSet wants the garments in the order worn, sibling, cousin, which is that of a case.
            garments=np.arange(num_cases * num_garments).reshape(num_cases, num_garments),
            categories=[words["category"] for words in texts],
            captions=[(words["kind"],) * 2 + (words["caption_0"],) * 3 for words in texts],
            scaling_factor=scaling_factor(plain),
        )

    @torch.inference_mode()
    def _computed(
        self, name: str, source: str | None, rows: Callable[[int], NDArray[np.float16]]
    ) -> NDArray[np.float16]:
        """Return the results of `rows` for all cases, from a file that is written where there is none yet.

        source: the stage on whose checkpoint the results depend, None for no stage. rows: takes the number of the first
        case, and returns the results of the next BATCH cases. The processes share the work.
        """
        stamp = (self.work / f"{source}.pt").stat().st_mtime_ns if source else 0
        path = self.work / f"{name}-{len(self.cases)}-{stamp}.npy"
        starts = range(0, len(self.cases), BATCH)
        if not path.exists():
            own_rows = {str(start): rows(start) for start in starts[self.rank :: self.world]}
            np.savez(self.work / f"{name}.part{self.rank}.npz", allow_pickle=False, **own_rows)
            barrier()
            if self.rank == 0:
                self._join(name, path)
        barrier()
        return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]

    def _join(self, name: str, path: Path) -> None:
        """Write what the processes have computed to `path`, and remove older results of this name."""
        parts: dict[int, NDArray[np.float16]] = {}
        for file in sorted(self.work.glob(f"{name}.part*.npz")):
            with np.load(file) as content:
                parts |= {int(start): content[start] for start in content.files}
            file.unlink()
        for old in self.work.glob(f"{name}-*.npy"):
            old.unlink()
        np.save(path.with_suffix(".partial.npy"), np.concatenate([parts[start] for start in sorted(parts)]))
        path.with_suffix(".partial.npy").rename(path)
