"""API keys: who may use the server, and under which name they are counted. The ingress checks them before any work.

The command line reads the keys of its own requests with `read_keys`.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from fashion_rag.errors import ArtifactError, FashionRAGError

# The environment variables that may hold keys: of callers, and of those who may change the catalogue.
API_KEYS, CATALOGUE_KEYS = "FASHION_RAG_API_KEYS", "FASHION_RAG_CATALOGUE_KEYS"
# So many digits of its SHA-256 name a key: enough to tell keys apart in logs and metrics.
NAME_LENGTH = 8


class Unauthorized(FashionRAGError):
    """The request has no API key, or one that this server does not know."""


class Forbidden(FashionRAGError):
    """This server lets nobody do what the request asks for."""


@dataclass(frozen=True)
class ApiKeys:
    """The API keys of a server, as SHA-256 digests."""

    digests: tuple[bytes, ...] = field(repr=False)

    @classmethod
    def load(cls, path: str | None, variable: str, environment: Mapping[str, str]) -> Self | None:
        """Return the keys in a file, one a line, and in an environment variable, parted by commas; None without both.

        Raises ArtifactError for a file that cannot be read and for a key that no HTTP header can hold. Raises it also
        for a source without a key, so that no mistake opens the server to everyone.
        """
        keys = [] if path is None else read_keys(Path(path))
        if variable in environment:
            parts = [part.strip() for part in environment[variable].split(",")]
            keys += _checked(variable, [part for part in parts if part])
        return cls(tuple(map(_digest, keys))) if keys else None

    def check(self, authorization_header: str | None) -> str:
        """Return the public name of the key in the header `Authorization: Bearer KEY`.

        The comparison takes the same time for every key. Raises Unauthorized for any other header, and for none.
        """
        scheme, _, key = (authorization_header or "").partition(" ")
        digest = _digest(key.strip())
        matches = [hmac.compare_digest(digest, known_digest) for known_digest in self.digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise Unauthorized("authorization: must be 'Bearer KEY', with an API key of this server")
        return digest.hex()[:NAME_LENGTH]


def read_keys(path: Path) -> list[str]:
    """Return the API keys in a file, one a line; blank lines, and lines that start with #, are left out.

    Raises ArtifactError for a file that cannot be read or has no key, and for a key that no HTTP header can hold.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: no readable file of API keys: {error}") from error
    return _checked(str(path), [line for line in lines if line and not line.startswith("#")])


def _checked(source: str, keys: list[str]) -> list[str]:
    """Return the keys. Raises ArtifactError if there are none, or if one cannot be sent in a header."""
    if not keys:
        raise ArtifactError(f"{source}: has no API key; must have one, or be left out")
    for number, key in enumerate(keys, 1):
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ArtifactError(f"{source}: key {number} must be of visible ASCII characters without spaces")
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
