"""A drawn data set and the catalogue of its garments, for servers that are started without a catalogue."""

from pathlib import Path

from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.garments import garments_in
from fashion_rag.demo.world.layout import write_dresscode

NUM_PAIRS, WORLD_SEED = 24, 7


def ensure_demo_world(folder: Path, bundle: Path) -> Path:
    """Return the folder of a catalogue of drawn garments, below `folder`, beside the data set that they come from.

    The same bundle always gives the same files. Raises ArtifactError for a bundle that cannot be opened.
    """
    opened = Bundle.open(bundle)
    write_dresscode(folder, NUM_PAIRS, WORLD_SEED, size=opened.manifest.image_size)
    opened.build_catalogue(folder / "catalogue", garments_in(folder), mirror=True, work=folder / "work")
    return folder / "catalogue"
