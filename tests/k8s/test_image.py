"""The Dockerfile fits the repository. The tests do not build the image, because they run without Docker."""

import re
import subprocess
import sys
import tomllib

import pytest

from k8s.checks.overlay import ROOT, Overlay

REPOSITORY = ROOT.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
IGNORED = (ROOT / "Dockerfile.dockerignore").read_text().split()
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def test_the_targets_that_the_overlays_name() -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
    for name in ("cpu-demo", "gpu", "gpu-split"):
        pods = Overlay.render(ROOT / "overlays" / name).pods
        images = {container["image"] for pod in pods for container in pod.spec["containers"]}
        for tag in (image.partition(":")[2] for image in images if image.startswith("fashion-rag")):
            assert tag.removeprefix(f"{PROJECT['project']['version']}-") in targets


def test_bases_have_versions() -> None:
    bases = re.findall(r"^FROM (\S+:\S+)", DOCKERFILE, re.MULTILINE)
    assert bases and all(re.search(r":\d+\.\d+\.\d+", base) for base in bases)


def test_the_user_is_that_of_the_pods() -> None:
    assert re.findall(r"--uid (\d+)", DOCKERFILE) == ["1000"]
    assert DOCKERFILE.rindex("USER 1000") > DOCKERFILE.rindex("USER root")


def test_what_is_copied_is_there_and_not_ignored() -> None:
    sources = {
        word for line in re.findall(r"^COPY (?!--from)(.*) \./$", DOCKERFILE, re.MULTILINE) for word in line.split()
    }
    packages = set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    built_from = {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    for name in sources | packages | built_from:
        assert (REPOSITORY / name).exists()
        assert f"!{name}" in IGNORED


@pytest.mark.parametrize("extra", [None, "gpu"])
def test_requirements_are_those_of_the_project(extra: str | None) -> None:
    command = [sys.executable, "k8s/requirements.py", *([extra] if extra else [])]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    project = PROJECT["project"]
    assert run.stdout.split() == (project["optional-dependencies"][extra] if extra else project["dependencies"])
