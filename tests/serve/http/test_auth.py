"""Tests which API keys are let in, without Ray."""

import hashlib
from pathlib import Path

import pytest

from fashion_rag.errors import ArtifactError
from serve.http.auth import API_KEYS, ApiKeys, Unauthorized


def name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:8]


def loaded(path: str | None, environment: dict[str, str]) -> ApiKeys:
    keys = ApiKeys.load(path, API_KEYS, environment)
    assert keys is not None
    return keys


def test_without_a_source_of_keys_there_are_none() -> None:
    assert ApiKeys.load(None, API_KEYS, {"PATH": "/bin"}) is None


def test_keys_come_from_the_file_and_from_the_variable(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# for the shop\n\n  first-key \r\nsecond#key\n #third-key\n")
    keys = loaded(str(tmp_path / "keys"), {API_KEYS: "fourth-key, fifth-key,"})
    for key in ("first-key", "second#key", "fourth-key", "fifth-key"):
        assert keys.check(f"Bearer {key}") == name(key)
    for key in ("third-key", "#third-key", "# for the shop", "fourth-key, fifth-key"):
        with pytest.raises(Unauthorized):
            keys.check(f"Bearer {key}")


@pytest.mark.parametrize("content", [b"", b"\n \n", b"# first-key\n", b"two words\n", "clé\n".encode(), b"\xff\n"])
def test_a_file_without_proper_keys_never_opens_the_door(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "keys").write_bytes(content)
    with pytest.raises(ArtifactError, match="keys"):
        ApiKeys.load(str(tmp_path / "keys"), API_KEYS, {API_KEYS: "first-key"})


def test_a_file_that_is_not_there_never_opens_the_door(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(ArtifactError, match="no readable file"):
            ApiKeys.load(str(path), API_KEYS, {})


@pytest.mark.parametrize("value", ["", " , ", "two words"])
def test_a_variable_without_proper_keys_never_opens_the_door(value: str) -> None:
    with pytest.raises(ArtifactError, match=API_KEYS):
        ApiKeys.load(None, API_KEYS, {API_KEYS: value})


@pytest.mark.parametrize("header", ["Bearer first-key", "bearer first-key", "BEARER   first-key "])
def test_the_scheme_has_no_case(header: str) -> None:
    assert loaded(None, {API_KEYS: "first-key"}).check(header) == name("first-key")


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "first-key", "Basic first-key", "Bearer first-ke", "Bearer First-key",
     "Bearer first-key second-key", "Bearer é", "Bearerfirst-key"],
)  # fmt: skip
def test_other_headers_are_refused(header: str | None) -> None:
    with pytest.raises(Unauthorized, match="Bearer KEY") as caught:
        loaded(None, {API_KEYS: "first-key"}).check(header)
    assert "first" not in str(caught.value)


def test_neither_keys_nor_digests_are_printed() -> None:
    assert repr(loaded(None, {API_KEYS: "first-key"})) == "ApiKeys()"
