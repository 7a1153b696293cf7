"""What training needs of a Dress Code data set, computed once by the frozen networks and kept on disk.

Called by `run`. The folder `cache-KEY` in the working folder belongs to these encoders, pairs, captions and retrieval
files (pictures are taken not to change); with any others, another is begun, and the old may be deleted. In it:

    photos-NNNN.npy, photos-NNNN.json    CHUNK samples each: moments, mask and pose; words and garments
    garments-NNNN.npy                    CHUNK garments each: the vision tower's hidden states, each garment once

Disk at full size, in float16: 211 KB a sample and 658 KB a distinct garment; for the 48,392 training pairs of Dress
Code about 10 GB and 32 GB. Chunks are spread over the processes; one that is there is not computed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fashion_rag.artifacts import joint_sha256, read_json, write_json
from fashion_rag.bundle import PROCESSOR_FILE, Bundle
from fashion_rag.data.dresscode import RETRIEVAL_MODEL, DressCode, Sample
from fashion_rag.data.image import open_image, to_tensor
from fashion_rag.data.masks import MaskType, repaint_mask_for
from fashion_rag.data.pose import KEYPOINT_FRAME, heat_maps, scale_keypoints, to_latent
from fashion_rag.errors import ArtifactError
from fashion_rag.manifest import Manifest
from fashion_rag.models.adapter import GarmentEncoder
from fashion_rag.models.autoencoder import VAE
from fashion_rag.models.pretrained import CONFIG_FILE
from fashion_rag.request import CATEGORIES, MAX_GARMENTS
from fashion_rag.training.objective import TrainingSet
from fashion_rag.training.processes import Report, barrier, rank_and_world, silent

CHUNK = 512
BATCH = 16
DEFAULT_SCALING_FACTOR = 0.18215  # diffusers' own, which a configuration may leave unsaid


@dataclass(frozen=True)
class Source:
    """A data set in the Dress Code layout: its `train_pairs.txt`, and the folder of its retrieval files, if any.

    Without retrieval files a sample has one garment, the one worn; with them, three.
    """

    root: Path
    retrieval: Path | None = None
    categories: tuple[str, ...] = CATEGORIES
    num_chunks: int = 3
    mask_type: MaskType = "bounding_box"

    @property
    def num_garments(self) -> int:
        """Return how many garments a sample has."""
        return MAX_GARMENTS if self.retrieval else 1

    def open(self, size: tuple[int, int]) -> DressCode:
        """Return the samples, at `size`. Raises as DressCode."""
        return DressCode(
            self.root,
            "train",
            categories=self.categories,
            num_chunks=self.num_chunks,
            size=size,
            retrieval=self.retrieval,
            num_retrieved=self.num_garments if self.retrieval else 0,
        )

    def fingerprint(self) -> str:
        """Return a digest of the choices made here, and of the files that say which pictures go together."""
        choices = repr((sorted(self.categories), self.num_chunks, self.mask_type, self.num_garments))
        files = [*self.root.glob("*_captions.json"), *self.root.glob("*/train_pairs.txt")]
        if self.retrieval:
            files += (self.retrieval / RETRIEVAL_MODEL).glob("train_*.json")
        return hashlib.sha256((choices + joint_sha256(sorted(files))).encode()).hexdigest()


class Chunked:
    """The rows of several arrays of CHUNK rows each, but for the last, as `objective.Rows`."""

    def __init__(self, chunks: Sequence[NDArray[Any]]) -> None:
        self.chunks = chunks

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[Any]:
        """Return a new array of these rows."""
        return np.stack([self.chunks[row // CHUNK][row % CHUNK] for row in rows])


def prepare(source: Source, bundle: Bundle, work: Path, device: torch.device, report: Report = silent) -> TrainingSet:
    """Return the training set of `source` for `bundle`, read from its cache in `work`, which is filled first.

    `report` is told, after every batch, how many samples or garments this process has computed, of how many. Raises
    ArtifactError, naming the path, for a file that is missing or damaged.
    """
    folder = work / f"cache-{cache_key(source, bundle)}"
    folder.mkdir(parents=True, exist_ok=True)
    people = source.open(bundle.manifest.mask_rule_size)
    if not len(people):
        raise ArtifactError(f"{source.root}: no training pair with a caption in {', '.join(source.categories)}")
    photos = [folder / f"photos-{number:04d}.npy" for number in range(-(-len(people) // CHUNK))]
    if missing := _missing(photos):
        vae = bundle.load_vae(device)
        chunks = {path: range(len(people))[number * CHUNK : (number + 1) * CHUNK] for number, path in missing}
        advance = _advance("photos", sum(map(len, chunks.values())), report)
        for path, indices in chunks.items():
            _write_photos(path, people, indices, source, bundle, vae, device, advance)
    barrier()
    samples = [sample for path in photos for sample in read_json(path.with_suffix(".json"))]
    names = sorted({name for sample in samples for name in sample["garments"]})
    hidden = [folder / f"garments-{number:04d}.npy" for number in range(-(-len(names) // CHUNK))]
    if missing := _missing(hidden):
        encoder = bundle.load_garment_encoder(device)
        worn = {path: names[number * CHUNK : (number + 1) * CHUNK] for number, path in missing}
        advance = _advance("garments", sum(map(len, worn.values())), report)
        for path, some in worn.items():
            _save(path, _hidden([source.root / name for name in some], encoder, advance))
    barrier()
    return _training_set(samples, names, photos, hidden, bundle)


def cache_key(source: Source, bundle: Bundle) -> str:
    """Return which cache belongs to these encoders and this data set."""
    manifest = bundle.manifest
    sizes = repr((manifest.image_size, manifest.mask_rule_size, manifest.pose_sigma))
    processor = joint_sha256([bundle.path / "image_processor" / PROCESSOR_FILE])
    digests = bundle.fingerprint("vae", "vision_encoder") + processor + source.fingerprint()
    return hashlib.sha256((sizes + digests).encode()).hexdigest()[:16]


def _missing(paths: Sequence[Path]) -> list[tuple[int, Path]]:
    """Return the chunks, with their numbers, that are this process's to compute and not there yet."""
    rank, world = rank_and_world()
    mine = list(enumerate(paths))[rank::world]
    return [(number, path) for number, path in mine if not path.exists()]


def _advance(stage: str, total: int, report: Report) -> Callable[[int], None]:
    """Return what is called with the number of items that have just been computed of `total`."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(stage, done, total, 0.0)

    return advance


def _no_news(count: int) -> None:
    """Take no notice of how many items have been computed."""


def _save(path: Path, array: NDArray[Any]) -> None:
    aside = path.with_suffix(".partial.npy")
    np.save(aside, array)
    aside.rename(path)


def _batches(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))


def _write_photos(
    path: Path,
    people: DressCode,
    indices: range,
    source: Source,
    bundle: Bundle,
    vae: VAE,
    device: torch.device,
    advance: Callable[[int], None],
) -> None:
    words: list[dict[str, Any]] = []
    rows = []
    for batch in _batches(indices):
        samples = [people[index] for index in batch]
        for sample in samples:
            names = [path.relative_to(source.root).as_posix() for path in _garments(sample, source.num_garments)]
            words.append({"category": sample.category, "caption": sample.caption, "garments": names})
        rows.append(_photo_rows(samples, bundle.manifest, bundle.latent_size, source.mask_type, vae, device))
        advance(len(batch))
    # The array last: where it is, so are the words.
    write_json(path.with_suffix(".json"), words)
    _save(path, np.concatenate(rows))


def _garments(sample: Sample, num_garments: int) -> list[Path]:
    """Return the garment worn, then the best of the retrieved ones; pairs are retrieved by the worn one's own
    caption.
    """
    others = [path for path in sample.retrieved_paths if path != sample.garment_path]
    return [sample.garment_path, *others][:num_garments]


@torch.inference_mode()
def _photo_rows(
    samples: Sequence[Sample],
    manifest: Manifest,
    latent_size: tuple[int, int],
    mask_type: MaskType,
    vae: VAE,
    device: torch.device,
) -> NDArray[np.void]:
    """Return a record for each sample."""
    size = manifest.image_size
    images = torch.stack([to_tensor(sample.image, size) for sample in samples]).to(device)
    masks, maps = [], []
    for sample in samples:
        rule = (sample.label_map, sample.keypoints, sample.category, mask_type, size, manifest.mask_rule_size)
        masks.append(torch.from_numpy(repaint_mask_for(*rule)))
        points = scale_keypoints(sample.keypoints, KEYPOINT_FRAME, size)
        maps.append(to_latent(heat_maps(points, size, manifest.pose_sigma), latent_size))
    mask = torch.stack(masks)[:, None].to(device).float()
    values = {
        "moments": vae.encoder(images),
        # The hole is 0, mid grey, as in an edit.
        "masked_moments": vae.encoder(images * (1 - mask)),
        "mask": functional.interpolate(mask, size=latent_size, mode="nearest").byte(),
        "pose": torch.stack(maps),
    }
    fields = [(name, np.uint8 if name == "mask" else np.float16, value.shape[1:]) for name, value in values.items()]
    rows = np.empty(len(samples), fields)
    for name, value in values.items():
        rows[name] = value.cpu().numpy()
    return rows


@torch.inference_mode()
def _hidden(
    paths: Sequence[Path], encoder: GarmentEncoder, advance: Callable[[int], None] = _no_news
) -> NDArray[np.float16]:
    """Return the vision tower's last hidden states of garment pictures, [N, T, D]."""
    network: Any = encoder.network
    tower = network.vision_encoder
    rows = []
    for batch in _batches(paths):
        pixels = encoder.pixels([open_image(path, field="garment") for path in batch])
        rows.append(tower(pixel_values=pixels.to(tower.device)).last_hidden_state.half().cpu().numpy())
        advance(len(batch))
    return np.concatenate(rows)


def _training_set(
    samples: Sequence[dict[str, Any]],
    names: Sequence[str],
    photos: Sequence[Path],
    hidden: Sequence[Path],
    bundle: Bundle,
) -> TrainingSet:
    place = {name: number for number, name in enumerate(names)}
    records = [np.load(path, mmap_mode="r") for path in photos]
    config = read_json(bundle.path / "vae" / CONFIG_FILE)
    return TrainingSet(
        **{name: Chunked([chunk[name] for chunk in records]) for name in ("moments", "masked_moments", "mask", "pose")},
        hidden=Chunked([np.load(path, mmap_mode="r") for path in hidden]),
        garments=np.array([[place[name] for name in sample["garments"]] for sample in samples]),
        categories=[sample["category"] for sample in samples],
        captions=[(sample["caption"],) for sample in samples],
        scaling_factor=config.get("scaling_factor", DEFAULT_SCALING_FACTOR),
    )
