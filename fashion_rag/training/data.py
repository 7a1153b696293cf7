"""What training needs of a Dress Code data set, computed once by the frozen networks and kept on disk.

Called by `run`. The folder `cache-KEY` in the working folder belongs to certain encoders, pairs, captions and retrieval
files; pictures are assumed not to change. If any of these change, a new folder is begun and the old one may be deleted.
It holds:

    photos-NNNN.npy, photos-NNNN.json    CHUNK samples each: moments, mask and pose; words and garments
    garments-NNNN.npy                    CHUNK garments each: the vision tower's hidden states, each garment once

Disk at full size, in float16: 211 KB a sample and 658 KB a distinct garment; for the 48,392 training pairs of Dress
Code about 10 GB and 32 GB. Chunks are spread over the processes; a chunk that is there is not computed again.
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
from fashion_rag.bundle import Bundle
from fashion_rag.data.dresscode import RETRIEVAL_MODEL, DressCode, Sample
from fashion_rag.data.image import open_image, to_tensor
from fashion_rag.data.masks import repaint_mask_for
from fashion_rag.data.pose import KEYPOINT_FRAME, heat_maps, scale_keypoints, to_latent
from fashion_rag.errors import ArtifactError
from fashion_rag.models.adapter import GarmentEncoder
from fashion_rag.models.autoencoder import VAE
from fashion_rag.models.pretrained import CONFIG_FILE, PROCESSOR_FILE
from fashion_rag.request import CATEGORIES, MAX_GARMENTS, MaskType
from fashion_rag.training.objective import TrainingSet
from fashion_rag.training.processes import Report, barrier, rank_and_world, silent

CHUNK = 512
BATCH = 16
DEFAULT_SCALING_FACTOR = 0.18215  # the default of diffusers, which a configuration may leave out


@dataclass(frozen=True)
class Source:
    """A data set in the Dress Code layout, with its `train_pairs.txt`, and the folder of its retrieval files, if any.

    Without retrieval files a sample has one garment, which is the one worn; with them it has three.
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
        """Return the samples at `size`. Raises as `DressCode`."""
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
        """Return a digest of these choices, and of the files that say which pictures go together."""
        choices = repr((sorted(self.categories), self.num_chunks, self.mask_type, self.num_garments))
        files = [*self.root.glob("*_captions.json"), *self.root.glob("*/train_pairs.txt")]
        if self.retrieval:
            files += (self.retrieval / RETRIEVAL_MODEL).glob("train_*.json")
        return hashlib.sha256((choices + joint_sha256(sorted(files))).encode()).hexdigest()


class Chunked:
    """A `RowArray` of several arrays; all but the last have CHUNK rows."""

    def __init__(self, chunks: Sequence[NDArray[Any]]) -> None:
        self.chunks = chunks

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[Any]:
        """Return a new array of these rows."""
        return np.stack([self.chunks[row // CHUNK][row % CHUNK] for row in rows])


def prepare(source: Source, bundle: Bundle, work: Path, device: torch.device, report: Report = silent) -> TrainingSet:
    """Return the training set of `source` for `bundle`, read from its cache in `work`, which is filled first.

    report: called after every batch with the number of samples or garments that this process has computed, and their
    total. Raises ArtifactError, naming the path, for a file that is missing or damaged.
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
            _write_photos(path, people, indices, source=source, bundle=bundle, vae=vae, device=device, advance=advance)
    barrier()
    samples = [sample for path in photos for sample in read_json(path.with_suffix(".json"))]
    names: list[str] = sorted(set().union(*(sample["garments"] for sample in samples)))
    hidden = [folder / f"garments-{number:04d}.npy" for number in range(-(-len(names) // CHUNK))]
    if missing := _missing(hidden):
        encoder = bundle.load_garment_encoder(device)
        worn = {path: names[number * CHUNK : (number + 1) * CHUNK] for number, path in missing}
        advance = _advance("garments", sum(map(len, worn.values())), report)
        for path, chunk in worn.items():
            _save(path, _hidden([source.root / name for name in chunk], encoder, advance))
    barrier()
    return _training_set(samples, names, photos=photos, hidden=hidden, bundle=bundle)


def cache_key(source: Source, bundle: Bundle) -> str:
    """Return the name of the cache that belongs to these encoders and this data set."""
    manifest = bundle.manifest
    sizes = repr((manifest.image_size, manifest.mask_rule_size, manifest.pose_sigma))
    processor = joint_sha256([bundle.path / "image_processor" / PROCESSOR_FILE])
    digests = bundle.fingerprint("vae", "vision_encoder") + processor + source.fingerprint()
    return hashlib.sha256((sizes + digests).encode()).hexdigest()[:16]


def _missing(paths: Sequence[Path]) -> list[tuple[int, Path]]:
    """Return the numbers and paths of the chunks that this process computes and that are not there yet."""
    rank, world = rank_and_world()
    assigned = list(enumerate(paths))[rank::world]
    return [(number, path) for number, path in assigned if not path.exists()]


def _advance(stage: str, total: int, report: Report) -> Callable[[int], None]:
    """Return a function that takes how many more items have been computed, and reports the sum and `total`."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(stage, done, total, 0.0)

    return advance


def _no_news(count: int) -> None:
    """Do nothing: the default where nobody wants to know how many items have been computed."""


def _save(path: Path, array: NDArray[Any]) -> None:
    """Write an array that a reader finds whole or not at all."""
    aside = path.with_suffix(".partial.npy")
    np.save(aside, array)
    aside.rename(path)


def _batches(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))


def _write_photos(
    path: Path,
    people: DressCode,
    indices: range,
    *,
    source: Source,
    bundle: Bundle,
    vae: VAE,
    device: torch.device,
    advance: Callable[[int], None],
) -> None:
    """Write a chunk of samples: their array to `path`, and their words and garments to a JSON file beside it."""
    words: list[dict[str, Any]] = []
    rows = []
    for batch in _batches(indices):
        samples = [people[index] for index in batch]
        for sample in samples:
            names = [path.relative_to(source.root).as_posix() for path in _garments(sample, source.num_garments)]
            words.append({"category": sample.category, "caption": sample.caption, "garments": names})
        rows.append(_photo_rows(samples, bundle=bundle, mask_type=source.mask_type, vae=vae, device=device))
        advance(len(batch))
    # The array is written last, because a chunk counts as complete where its array is there.
    write_json(path.with_suffix(".json"), words)
    _save(path, np.concatenate(rows))


def _garments(sample: Sample, num_garments: int) -> list[Path]:
    """Return the garment that is worn, then the best retrieved ones.

    Garments are retrieved by the caption of the worn one, so it may be among them, and is then left out.
    """
    retrieved = [path for path in sample.retrieved_paths if path != sample.garment_path]
    return [sample.garment_path, *retrieved][:num_garments]


@torch.inference_mode()
def _photo_rows(
    samples: Sequence[Sample], *, bundle: Bundle, mask_type: MaskType, vae: VAE, device: torch.device
) -> NDArray[np.void]:
    """Return a record for each sample, with the fields moments, masked_moments, mask and pose of `TrainingSet`."""
    manifest, latent_size = bundle.manifest, bundle.latent_size
    size = manifest.image_size
    images = torch.stack([to_tensor(sample.image, size) for sample in samples]).to(device)
    masks, maps = [], []
    for sample in samples:
        mask_of_sample = repaint_mask_for(
            sample.label_map, sample.keypoints, sample.category, mask_type, size, manifest.mask_rule_size
        )
        masks.append(torch.from_numpy(mask_of_sample))
        points = scale_keypoints(sample.keypoints, KEYPOINT_FRAME, size)
        maps.append(to_latent(heat_maps(points, size, manifest.pose_sigma), latent_size))
    mask = torch.stack(masks)[:, None].to(device).float()
    values = {
        "moments": vae.encoder(images),
        # What is to be repainted becomes 0, which is mid grey, as in an edit.
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
    *,
    photos: Sequence[Path],
    hidden: Sequence[Path],
    bundle: Bundle,
) -> TrainingSet:
    """Return the training set in the cache.

    samples: the words of all samples. names: of all garments, in the order of their rows in `hidden`. photos, hidden:
    the files of the chunks.
    """
    rows = {name: row for row, name in enumerate(names)}
    garments = []
    for sample in samples:
        garments.append([rows[name] for name in sample["garments"]])
    chunks = [np.load(path, mmap_mode="r") for path in photos]
    config = read_json(bundle.path / "vae" / CONFIG_FILE)
    return TrainingSet(
        moments=Chunked([chunk["moments"] for chunk in chunks]),
        masked_moments=Chunked([chunk["masked_moments"] for chunk in chunks]),
        mask=Chunked([chunk["mask"] for chunk in chunks]),
        pose=Chunked([chunk["pose"] for chunk in chunks]),
        hidden=Chunked([np.load(path, mmap_mode="r") for path in hidden]),
        garments=np.array(garments),
        categories=[sample["category"] for sample in samples],
        captions=[(sample["caption"],) for sample in samples],
        scaling_factor=config.get("scaling_factor", DEFAULT_SCALING_FACTOR),
    )
