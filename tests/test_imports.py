"""Tests of the architecture: which module may import which, where packages may be used, what an import may do."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("fashion_rag", "export", "serve")

# The lowest layer comes first. A module may import from its own group and from lower layers. Groups in the same layer
# may not import each other.
LAYERS = (
    ("fashion_rag.errors", "fashion_rag.provenance"),
    ("fashion_rag.artifacts", "fashion_rag.published", "fashion_rag.weights"),
    ("fashion_rag.atomic_files",),
    ("fashion_rag.manifest", "fashion_rag.request"),
    ("fashion_rag.sampling",),
    ("fashion_rag.data",),
    ("fashion_rag.models",),
    ("fashion_rag.person",),
    ("fashion_rag.catalogue", "fashion_rag.denoising"),
    ("fashion_rag.bundle_checks",),
    ("fashion_rag.bundle",),
    ("fashion_rag.bundle_write", "fashion_rag.person_import"),
    ("fashion_rag.bundle_import",),
    ("fashion_rag.completer",),
    ("fashion_rag.pipeline",),
    ("fashion_rag.evaluation", "fashion_rag.preparation", "fashion_rag.training"),
    ("fashion_rag.demo",),
    ("export",),
    ("serve",),
    ("fashion_rag.cli",),
)
# Packages, and the only part of the project that may import them.
HOMES = {
    "fastapi": "serve",
    "matplotlib": "serve.bench.plot",
    "opentelemetry": "serve",
    "ray": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "onnx": "export",
    "onnxruntime": "export",
    "openvino": "export",
    "tensorrt": "export",
    "tensorrt_rtx_bindings": "export",
}
# These modules use Ray Data and Ray Train, which is their purpose.
GUESTS = {
    ("fashion_rag.catalogue.on_ray", "ray"),
    ("fashion_rag.preparation.on_ray", "ray"),
    ("fashion_rag.training.on_ray", "ray"),
}
# Distributions whose name differs from that of the package that they install.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "faiss": "faiss-cpu",
    "open_clip": "open_clip_torch",
    # Its packages share a namespace: opentelemetry-sdk, -proto and the exporter are declared beside it.
    "opentelemetry": "opentelemetry-api",
    "tensorrt_rtx_bindings": "tensorrt-rtx-cu13-bindings",
    "yaml": "pyyaml",
}
HEAVY = ("torch", "transformers", "diffusers", "open_clip", "faiss", "ray", "fastapi", "onnxruntime", "openvino")
# What networks need, and a process without them must not import.
NETWORKS = (*HEAVY[:5], "torchvision", "onnx", "onnxruntime", "openvino")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
# Imports inside functions, and those for type checking only, count like all others.
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def belongs(module: str, group: str) -> bool:
    return module == group or module.startswith(group + ".")


def row_and_group(module: str) -> tuple[int, str] | None:
    return next(((row, group) for row, groups in enumerate(LAYERS) for group in groups if belongs(module, group)), None)


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names of what a source imports: modules, or names in them. Relative names start with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            yield from (f"{source}.{alias.name}" for alias in node.names)


def violations(module: str, tree: ast.AST) -> list[str]:
    """Return a line for each import of `module` that is against the rules above."""
    own_place = row_and_group(module)
    lines = []
    for target in imports(tree):
        place = row_and_group(target)
        package = target.split(".")[0]
        if target.startswith("."):
            lines.append(f"{module}: relative import of {target}")
        elif own_place and place and own_place[1] != place[1] and own_place[0] <= place[0]:
            lines.append(f"{module}: imports {target}, which is not below it")
        elif package in HOMES and not belongs(module, HOMES[package]) and (module, package) not in GUESTS:
            lines.append(f"{module}: imports {target}, which belongs to {HOMES[package]}")
    return lines


def own_names(module: str) -> set[str]:
    """Return the names that a module defines itself, and the modules directly in it, but not what it imports."""
    names = {name.rpartition(".")[2] for name in FILES if name.rpartition(".")[0] == module}
    for node in TREES[module].body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            stores = (child for child in ast.walk(node) if isinstance(child, ast.Name))
            names.update(child.id for child in stores if isinstance(child.ctx, ast.Store))
    return names


def work_at_import(tree: ast.Module) -> list[int]:
    """Return the lines of top-level statements other than definitions, imports, constants and docstrings."""
    definitions = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.AsyncFunctionDef,
                   ast.ClassDef)  # fmt: skip
    return [
        node.lineno
        for node in tree.body
        if not isinstance(node, definitions)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        and not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]


def test_imports_point_one_way() -> None:
    assert [line for module, tree in TREES.items() for line in violations(module, tree)] == []


def test_every_module_has_a_place_in_the_layers() -> None:
    packages = {"fashion_rag"}  # its __init__ holds a docstring only
    assert {module for module in TREES if row_and_group(module) is None} == packages


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fashion_rag.models.unet", "from fashion_rag.pipeline import Pipeline"),
        ("fashion_rag.data.image", "import fashion_rag.models.unet"),
        ("fashion_rag.data.image", "from fashion_rag import models"),
        ("fashion_rag.catalogue.catalogue", "from fashion_rag.denoising.noise_schedule import guide"),
        ("fashion_rag.denoising.noise_schedule", "from fashion_rag.catalogue.catalogue import Catalogue"),
        ("fashion_rag.pipeline", "def run():\n    from export import to_onnx"),
        ("fashion_rag.demo.model.evaluate", "import serve.app"),
        ("export.to_onnx", "from serve import app"),
        ("serve.app", "from fashion_rag.cli import app"),
        ("fashion_rag.pipeline", "import ray"),
        ("export.engines", "from fastapi import FastAPI"),
        ("serve.denoiser", "import onnxruntime as ort"),
        ("fashion_rag.bundle", "if True:\n    import onnx"),
        ("fashion_rag.pipeline", "from .bundle import Bundle"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str) -> None:
    assert len(violations(module, ast.parse(source))) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fashion_rag.pipeline", "from fashion_rag.bundle import Bundle\nimport torch"),
        ("fashion_rag.demo.world.draw", "from fashion_rag.demo.world.attributes import Garment"),
        ("fashion_rag.cli", "def demo():\n    from serve.showcase import run"),
        ("serve.denoiser", "from ray import serve as ray_serve\nfrom export.engines import Engine"),
        ("export.to_onnx", "import onnx\nfrom fashion_rag.models.unet import UNet"),
    ],
)
def test_an_allowed_import_is_left_alone(module: str, source: str) -> None:
    assert violations(module, ast.parse(source)) == []


def test_each_name_is_imported_from_the_module_that_defines_it() -> None:
    elsewhere = []
    for module, tree in TREES.items():
        for target in imports(tree):
            source, _, name = target.rpartition(".")
            if source in TREES and name not in own_names(source):
                elsewhere.append(f"{module}: {name} is not defined in {source}")
    assert elsewhere == []


def test_a_module_only_defines_when_it_is_imported() -> None:
    # The command line adds its groups of commands when it is imported; the test below shows that it is light.
    modules = (name for name in TREES if belongs(name, "fashion_rag") and not belongs(name, "fashion_rag.cli"))
    assert {name: lines for name in modules if (lines := work_at_import(TREES[name]))} == {}


def test_work_at_import_is_found() -> None:
    source = '"""Doc."""\nimport torch\nSIDE = 3\ntorch.manual_seed(0)\nfor i in range(SIDE):\n    print(i)\n'
    assert work_at_import(ast.parse(source)) == [4, 5]


@pytest.mark.parametrize(
    "module", ["fashion_rag.errors", "fashion_rag.manifest", "fashion_rag.request", "fashion_rag.cli"]
)
def test_light_modules_import_no_heavy_package(module: str) -> None:
    script = f"import sys, {module}; print(*sorted(set({HEAVY}) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split() == []


def test_the_ingress_imports_nothing_that_networks_need() -> None:
    script = f"import sys, serve.ingress, serve.handles; print(*sorted(set({NETWORKS}) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split() == []


def test_the_process_that_waits_imports_nothing_that_networks_need() -> None:
    # The command imports the starter and the listener first, then the rest.
    script = (
        "import sys, fashion_rag.cli.serving, serve.starter, serve.startup_listener\n"
        "early = 'ray' in sys.modules\n"
        f"import serve.app\nprint(early, *sorted(set({NETWORKS}) & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split() == ["False"]


def test_no_replica_imports_what_builds_networks() -> None:
    # Compiled networks run without them; where PyTorch runs the networks, they are imported when these are loaded.
    builders = ("transformers.modeling_utils", "diffusers", "open_clip", "torchvision", "sklearn", "onnx", "matplotlib")
    script = f"import sys, serve.stages, serve.denoiser; print(*sorted(set({builders}) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split() == []


def test_the_server_loads_nothing_of_opentelemetry_that_ray_serve_does_not() -> None:
    """What sends spans is loaded only where tracing is on."""
    before = "import sys, fastapi, ray.serve; before = set(sys.modules); import serve.app, serve.proxy"
    script = f"{before}; print(*(name for name in set(sys.modules) - before if name.startswith('opentelemetry')))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split() == []


def requirements() -> dict[str, list[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def test_every_package_we_import_is_a_dependency() -> None:
    declared = {
        re.split(r"[\[=]", requirement)[0]
        for extra in ("", "evaluate", "gpu", "train")
        for requirement in requirements()[extra]
    }
    # Figures are drawn by developers only.
    trees = [tree for module, tree in TREES.items() if module != HOMES["matplotlib"]]
    imported = {target.split(".")[0] for tree in trees for target in imports(tree)}
    foreign = imported - set(PACKAGES) - sys.stdlib_module_names
    assert {DISTRIBUTIONS.get(package, package) for package in foreign} - declared == set()


def test_requirements_are_exact() -> None:
    extras = requirements()
    own = {"fashion-rag[evaluate,gpu,k8s,train]"}
    required = {requirement for extra in extras.values() for requirement in extra}
    assert {requirement for requirement in required - own if "==" not in requirement} == set()
