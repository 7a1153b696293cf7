"""ICC profiles for tests, made of their few tags."""

import itertools
import struct
from collections.abc import Sequence

import numpy as np

D50 = (0.9642, 1.0, 0.8249)
# Red, green and blue of Display P3, adapted to D50.
P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
# Corners only: a lookup table is as coarse as can be.
GRID = 2


def display_p3() -> bytes:
    """Return a profile with the primaries of Display P3 and the curve of sRGB."""
    tags = {name: _xyz(values) for name, values in zip((b"rXYZ", b"gXYZ", b"bXYZ"), P3, strict=True)}
    curve = b"para" + struct.pack(">IHH", 0, 3, 0) + _fixed(SRGB_CURVE)
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def linear_grey() -> bytes:
    """Return a profile of grey levels that are proportional to light."""
    return _profile(b"scnr", b"GRAY", b"XYZ ", {b"kTRC": b"curv" + struct.pack(">II", 0, 0)})


def one_way_rgb() -> bytes:
    """Return a scanner's profile, which leads from RGB but not back, and by which every colour is a grey."""
    corners = itertools.product((0, 1), repeat=3)
    return _profile(b"scnr", b"RGB ", b"Lab ", {b"A2B0": _table(3, [sum(corner) / 3 for corner in corners])})


def press() -> bytes:
    """Return a CMYK profile whose inks are all as dark as each other and have no colour."""
    corners = itertools.product((0, 1), repeat=4)
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": _table(4, [1 - max(corner) for corner in corners])})


def _profile(device: bytes, space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = tags | {b"wtpt": _xyz(D50)}
    start, table, data = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    header = struct.pack(">I4sI4s4s4s12x4s", start + len(data), b"", 0x04300000, device, space, pcs, b"acsp")
    return header.ljust(68, b"\0") + _fixed(D50) + bytes(48) + table + data


def _table(num_channels: int, lightness: Sequence[float]) -> bytes:
    """Return an 8-bit lookup table from channels to greys in Lab; `lightness`, 0 to 1, of each corner."""
    ramp = bytes(range(256))
    corners = b"".join(bytes([round(255 * value), 128, 128]) for value in lightness)
    head = b"mft1" + struct.pack(">I4B", 0, num_channels, 3, GRID, 0) + _fixed(np.eye(3).ravel())
    return head + ramp * num_channels + corners + ramp * 3


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(values)


def _fixed(values: Sequence[float]) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)
