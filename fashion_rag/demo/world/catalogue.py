"""A drawn data set and the catalogue of its garments, for servers that are started without a catalogue."""

import hashlib
from pathlib import Path

from fashion_rag.artifacts import joint_sha256
from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.garments import garments_in
from fashion_rag.demo.world.layout import write_dresscode
from fashion_rag.errors import ArtifactError

NUM_PAIRS, WORLD_SEED = 24, 7
# Says from what the world in its folder was drawn.
DRAWN_FROM_FILE = "drawn-from"


def ensure_demo_world(folder: Path, bundle: Path) -> Path:
    """Return the folder of a catalogue of drawn garments, below `folder`, beside the data set that they come from.

    The same bundle always gives the same files, which are left as they are if they are there. Raises ArtifactError for
    a bundle that cannot be opened.
    """
    opened = Bundle.open(bundle)
    catalogue, drawn_from = folder / "catalogue", folder / DRAWN_FROM_FILE
    digest = _digest(opened)
    if not (drawn_from.is_file() and drawn_from.read_text() == digest and _can_be_searched(opened, catalogue)):
        drawn_from.unlink(missing_ok=True)
        write_dresscode(folder, NUM_PAIRS, WORLD_SEED, size=opened.manifest.image_size)
        opened.build_catalogue(catalogue, garments_in(folder), mirror=True, work=folder / "work")
        drawn_from.write_text(digest)
    return catalogue


def _digest(bundle: Bundle) -> str:
    """Return a digest of all that the world is drawn and encoded with: the bundle and the code of this package."""
    code = joint_sha256(sorted(Path(__file__).parent.glob("*.py")))
    parts = [code, *bundle.fingerprints().values(), str(bundle.manifest.image_size)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _can_be_searched(bundle: Bundle, catalogue: Path) -> bool:
    try:
        bundle.check_catalogue(catalogue)
    except ArtifactError:
        return False
    return True
