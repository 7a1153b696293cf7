"""The manifests have no fault, and each kind of fault is found in a broken copy of them."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.checks import capacity, commands, references, schemas, security, serving
from k8s.checks.__main__ import REPOSITORY, RUNBOOK, faults_of, folders
from k8s.checks.overlay import ROOT, Overlay, graph_of, groups_of, quantity
from serve.app import LOADS
from serve.config_file import read_graph

CRD = Path(__file__).parents[2] / "../shared/crds/ray.io_rayservices.yaml"

Break = Callable[[Overlay], None]


@cache
def rendered(name: str) -> Overlay:
    return Overlay.render(ROOT / name)


def broken(name: str, change: Break) -> Overlay:
    """Return a copy of an overlay, changed by `change`."""
    overlay = replace(rendered(name), documents=copy.deepcopy(rendered(name).documents))
    change(overlay)
    return overlay


def service(overlay: Overlay) -> dict[str, Any]:
    return overlay.ray_services[0]


def cluster(overlay: Overlay) -> dict[str, Any]:
    config: dict[str, Any] = service(overlay)["spec"]["rayClusterConfig"]
    return config


def worker(overlay: Overlay) -> dict[str, Any]:
    group: dict[str, Any] = cluster(overlay)["workerGroupSpecs"][0]
    return group


def container(overlay: Overlay) -> dict[str, Any]:
    first: dict[str, Any] = worker(overlay)["template"]["spec"]["containers"][0]
    return first


def named(overlay: Overlay, kind: str, name: str) -> dict[str, Any]:
    (document,) = [document for document in overlay.of_kind(kind) if document["metadata"]["name"] == name]
    return document


def graph(change: Callable[[dict[str, Any]], None]) -> Break:
    """Return a change to the application in the Serve config of a RayService."""

    def apply(overlay: Overlay) -> None:
        content = yaml.safe_load(service(overlay)["spec"]["serveConfigV2"])
        change(content["applications"][0])
        service(overlay)["spec"]["serveConfigV2"] = yaml.safe_dump(content)

    return apply


def deployment(name: str, **changes: Any) -> Break:
    """Return a change to the options of a deployment in the Serve config."""

    def change(application: dict[str, Any]) -> None:
        (options,) = [options for options in application["deployments"] if options["name"] == name]
        for key, value in changes.items():
            options[key] = options.get(key, {}) | value

    return graph(change)


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: str(folder.relative_to(ROOT)))
def test_what_is_applied_has_no_fault(folder: Path) -> None:
    assert list(faults_of(folder)) == []


def test_all_overlays_are_looked_at() -> None:
    names = {str(folder.relative_to(ROOT)) for folder in folders()}
    assert {"overlays/cpu-demo", "overlays/gpu", "overlays/gpu-split", "overlays/gpu/engines"} <= names


@pytest.mark.parametrize("name", ["cpu-demo", "gpu", "gpu-split"])
def test_the_service_has_the_file_that_serve_deploy_reads(name: str) -> None:
    folder = ROOT / "overlays" / name
    assert graph_of(service(rendered(f"overlays/{name}"))) == read_graph(folder / "serve.yaml")


@pytest.mark.skipif(not CRD.exists(), reason="KubeRay's own definition is not here")
def test_the_schema_is_kuberays() -> None:
    def bare(part: Any) -> Any:
        if isinstance(part, list):
            return [bare(item) for item in part]
        if not isinstance(part, dict):
            return part
        return {key: bare(item) for key, item in part.items() if key != "description" or not isinstance(item, str)}

    definition = yaml.load(CRD.read_text(), yaml.CSafeLoader)
    (version,) = [one for one in definition["spec"]["versions"] if one["name"] == "v1"]
    assert schemas.stored() == bare(version["schema"]["openAPIV3Schema"])


def test_quantities() -> None:
    assert [quantity(text) for text in ("500m", "2", 3, "1.5Gi", "2k")] == [0.5, 2, 3, 1.5 * 1024**3, 2000]
    for text in ("", "2 Gi", "-1", "2Zi"):
        with pytest.raises(ValueError, match="quantity"):
            quantity(text)


SCHEMA_FAULTS: dict[str, tuple[Break, str]] = {
    "unknown field of a pod": (lambda one: container(one).update(imagePulPolicy="Always"), "imagePulPolicy"),
    "unknown field of the service": (lambda one: service(one)["spec"].update(replicas=1), "replicas"),
    "a string for a number": (lambda one: worker(one).update(minReplicas="2"), "minReplicas: '2'"),
    "a value that there is not": (lambda one: cluster(one)["authOptions"].update(mode="basic"), "basic"),
    "what is required": (
        lambda one: service(one)["spec"]["upgradeStrategy"]["clusterUpgradeOptions"].pop("gatewayClassName"),
        "gatewayClassName",
    ),
    "core object": (
        lambda one: named(one, "PersistentVolumeClaim", "fashion-rag-models")["spec"].update(size="1Gi"),
        "size",
    ),
    "core type": (
        lambda one: named(one, "PodDisruptionBudget", "fashion-rag-gpu")["spec"].update(minAvailable=[1]),
        "minAvailable",
    ),
    "unknown kind": (lambda one: named(one, "Service", "fashion-rag-redis").update(kind="Servce"), "no such kind"),
}


@pytest.mark.parametrize("fault", SCHEMA_FAULTS)
def test_a_wrong_form_is_found(fault: str) -> None:
    change, words = SCHEMA_FAULTS[fault]
    found = schemas.check(broken("overlays/gpu", change))
    assert len(found) == 1 and words in found[0], found


def test_null_and_left_out_are_alike() -> None:
    def change(overlay: Overlay) -> None:
        worker(overlay)["scaleStrategy"] = None
        del worker(overlay)["minReplicas"]

    assert schemas.check(broken("overlays/gpu", change)) == []


CAPACITY_FAULTS: dict[str, tuple[Break, str]] = {
    "more GPU than a pod has": (deployment("Denoiser", ray_actor_options={"num_gpus": 2}), "Denoiser: no worker group"),
    "more CPU": (deployment("VAE", ray_actor_options={"num_cpus": 7}), "VAE: no worker group has 7 CPUs"),
    "more memory": (deployment("VAE", ray_actor_options={"memory": 27 * 1024**3}), "VAE: no worker group"),
    "a label that no group has": (
        deployment("Retriever", ray_actor_options={"label_selector": {"pool": "big"}}),
        "Retriever: no worker group has 1 CPUs, 0 GPUs, 3.0 GiB and labels {'pool': 'big'}",
    ),
    "too many at rest": (
        deployment("Denoiser", autoscaling_config={"min_replicas": 3}),
        "Denoiser: 1 of its warm minimum of replicas find no place",
    ),
    "too many at most": (
        deployment("Denoiser", autoscaling_config={"max_replicas": 9}),
        "Denoiser: 1 of its maximum of replicas find no place",
    ),
    "scaling that Serve refuses": (
        deployment("Denoiser", autoscaling_config={"max_replicas": "many"}),
        "autoscaling_config: 1 validation error",
    ),
    "fractions that no GPU is left for": (
        deployment("Denoiser", ray_actor_options={"num_gpus": 0.7}),
        "replicas find no place",
    ),
    "memory that the object store has": (
        lambda one: worker(one)["rayStartParams"].update({"object-store-memory": str(8 * 1024**3)}),
        "find no place",
    ),
    "a GPU that is not asked of Kubernetes": (
        lambda one: container(one)["resources"]["limits"].pop("nvidia.com/gpu"),
        "Denoiser: no worker group",
    ),
}


@pytest.mark.parametrize("fault", CAPACITY_FAULTS)
def test_what_does_not_fit_is_found(fault: str) -> None:
    change, words = CAPACITY_FAULTS[fault]
    found = capacity.check(broken("overlays/gpu", change))
    assert any(words in line for line in found), found


@pytest.mark.parametrize("name", ["cpu-demo", "gpu", "gpu-split"])
def test_every_stage_scales_by_itself(name: str) -> None:
    deployments = capacity.deployments_of(graph_of(service(rendered(f"overlays/{name}"))))
    assert {deployment.name for deployment in deployments} == set(LOADS)


def test_stages_that_are_to_share_a_process_are_looked_at() -> None:
    def share(application: dict[str, Any]) -> None:
        application["args"]["one_process"] = True
        options = {"ray_actor_options": {"num_cpus": 7}, "user_config": {"vae": {"max_batch": 0}}}
        application["deployments"] = [{"name": "Stages"} | options]

    overlay = broken("overlays/gpu", graph(share))
    assert any("Stages: no worker group has 7 CPUs" in line for line in capacity.check(overlay))
    (fault,) = serving.check(overlay)
    assert "deployment Stages: user_config" in fault and "max_batch" in fault


def test_ray_start_parameters_go_before_limits() -> None:
    def change(overlay: Overlay) -> None:
        worker(overlay)["rayStartParams"] |= {"num-cpus": "3", "memory": "1000"}

    (group,) = groups_of(service(broken("overlays/gpu", change)))
    assert (group.cpus, group.gpus, group.memory_bytes) == (3, 1, 1000)


SERVING_FAULTS: dict[str, tuple[Break, str]] = {
    "no YAML": (lambda one: service(one)["spec"].update(serveConfigV2="a: {"), "is not YAML"),
    "what Serve does not know": (graph(lambda one: one.update(replicas=1)), "replicas"),
    "another import path": (
        graph(lambda one: one.update(import_path="serve.app:run")),
        "must be one, with import_path",
    ),
    "unknown argument": (graph(lambda one: one["args"].update(cataloge="x")), "cataloge"),
    "wrong argument": (graph(lambda one: one["args"].update(drain_s="long")), "drain_s"),
    "unknown deployment": (
        graph(lambda one: one["deployments"].append({"name": "Decoder"})),
        "deployment Decoder: is not in the graph",
    ),
    "unknown setting": (deployment("Denoiser", user_config={"max_row": 8}), "max_row"),
    "wrong setting": (deployment("Denoiser", user_config={"max_rows": 1}), "max_rows: got 1"),
    "scaling by requests": (deployment("Denoiser", autoscaling_config={"policy": {}}), "LoadPolicy"),
    "long name": (lambda one: service(one)["metadata"].update(name="x" * 48), "at most 47"),
    "grace shorter than preStop": (
        lambda one: worker(one)["template"]["spec"].update(terminationGracePeriodSeconds=300),
        "terminationGracePeriodSeconds 300",
    ),
    "preStop shorter than the drain": (graph(lambda one: one["args"].update(drain_s=340)), "drain_s 340"),
    "no preStop": (lambda one: container(one).pop("lifecycle"), "preStop 0"),
    "old cluster gone too soon": (
        lambda one: service(one)["spec"].update(rayClusterDeletionDelaySeconds=60),
        "rayClusterDeletionDelaySeconds: got 60",
    ),
    "replicas on the head": (lambda one: cluster(one)["headGroupSpec"]["rayStartParams"].pop("num-cpus"), "head: must"),
    "edits through the head": (
        lambda one: service(one)["spec"].update(excludeHeadPodFromServeSvc=False),
        "head: must",
    ),
    "an upgrade without autoscaling": (
        lambda one: cluster(one).update(enableInTreeAutoscaling=False),
        "needs enableInTreeAutoscaling",
    ),
    "a variable that is missing": (lambda one: container(one)["env"].pop(), "RAY_SERVE_HTTP_PROXY_CALLBACK"),
    "a budget that stops drains": (lambda one: worker(one).update(minReplicas=1), "minAvailable: got 1"),
}


@pytest.mark.parametrize("fault", SERVING_FAULTS)
def test_what_cannot_be_served_is_found(fault: str) -> None:
    change, words = SERVING_FAULTS[fault]
    found = serving.check(broken("overlays/gpu", change))
    assert len(found) == 1 and words in found[0], found


REFERENCE_FAULTS: dict[str, tuple[Break, str]] = {
    "claim": (
        lambda one: named(one, "PersistentVolumeClaim", "fashion-rag-models")["metadata"].update(name="other"),
        "there is no PersistentVolumeClaim fashion-rag-models",
    ),
    "secret": (
        lambda one: worker(one)["template"]["spec"]["volumes"][2]["secret"].update(secretName="key"),
        "the runbook makes no secret key",
    ),
    "key of a secret in the environment": (
        lambda one: named(one, "StatefulSet", "fashion-rag-redis")["spec"]["template"]["spec"]["containers"][0]["env"][
            0
        ]["valueFrom"]["secretKeyRef"].update(key="word"),
        "no secret fashion-rag-redis with the key word",
    ),
    "key of a mounted secret": (graph(lambda one: one["args"].update(api_keys="/keys/keys")), "a key for /keys/keys"),
    "path": (graph(lambda one: one["args"].update(compiled="/compiled")), "nothing is mounted where /compiled is"),
    "volume": (lambda one: worker(one)["template"]["spec"]["volumes"].pop(0), "there is no volume tmp"),
    "volume of a claim": (
        lambda one: named(one, "StatefulSet", "fashion-rag-redis")["spec"]["volumeClaimTemplates"][0][
            "metadata"
        ].update(name="other"),
        "there is no volume data",
    ),
    "config map": (
        lambda one: cluster(one)["headGroupSpec"]["template"]["spec"]["volumes"][1]["projected"]["sources"][1][
            "configMap"
        ].update(name="ca"),
        "there is no ConfigMap ca",
    ),
    "image without a tag": (lambda one: container(one).update(image="fashion-rag"), "must have a tag"),
    "the latest image": (lambda one: container(one).update(image="fashion-rag:latest"), "and not latest"),
    "port of a probe": (
        lambda one: container(one)["ports"][0].update(name="http"),
        "readinessProbe: the container has no port serve",
    ),
    "labels of a policy": (
        lambda one: named(one, "NetworkPolicy", "edits")["spec"]["podSelector"]["matchLabels"].update(app="x"),
        "NetworkPolicy edits: no pod has the labels",
    ),
    "peers of a policy": (
        lambda one: named(one, "NetworkPolicy", "redis")["spec"]["ingress"][0]["from"][0]["podSelector"][
            "matchLabels"
        ].update(app="x"),
        "NetworkPolicy redis: no pod has the labels",
    ),
    "port of a policy": (
        lambda one: named(one, "NetworkPolicy", "edits")["spec"]["ingress"][0]["ports"][0].update(port=80),
        "NetworkPolicy edits: no pod that it selects has the port 80",
    ),
    "group of a budget": (
        lambda one: worker(one).update(groupName="other"),
        "PodDisruptionBudget fashion-rag-gpu: no pod has the labels",
    ),
    "port of a service": (
        lambda one: named(one, "Service", "fashion-rag-redis")["spec"]["ports"][0].update(targetPort="db"),
        "Service fashion-rag-redis: no pod that it selects has the port db",
    ),
    "Redis": (
        lambda one: named(one, "Service", "fashion-rag-redis")["spec"]["ports"][0].update(port=6380),
        "no service is at redis://fashion-rag-redis:6379",
    ),
}


@pytest.mark.parametrize("fault", REFERENCE_FAULTS)
def test_what_is_not_there_is_found(fault: str) -> None:
    change, words = REFERENCE_FAULTS[fault]
    found = references.check(broken("overlays/gpu", change), [], RUNBOOK.read_text())
    assert found and all(words in line for line in found), found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda spec: spec["containers"][0]["env"][1].update(value="/models/compiled/2"), "COMPILED: got"),
        (lambda spec: spec["nodeSelector"].update({"nvidia.com/gpu.product": "NVIDIA-T4"}), "no worker group has"),
        (lambda spec: spec["containers"][0]["volumeMounts"][2].update(subPath="compiled/x"), "no worker group has"),
    ],
)
def test_engines_for_other_pods_are_found(change: Callable[[dict[str, Any]], None], words: str) -> None:
    overlay = broken("overlays/gpu/engines", lambda one: change(one.of_kind("Job")[0]["spec"]["template"]["spec"]))
    (found,) = references.check(overlay, rendered("overlays/gpu").documents, RUNBOOK.read_text())
    assert words in found


def test_a_broken_graph_is_left_to_serving() -> None:
    overlay = broken("overlays/gpu", lambda one: service(one)["spec"].update(serveConfigV2="a: {"))
    assert capacity.check(overlay) == []
    assert references.check(overlay, [], RUNBOOK.read_text()) == []
    assert references.check(rendered("overlays/gpu/engines"), overlay.documents, RUNBOOK.read_text()) == []


def pod(overlay: Overlay) -> dict[str, Any]:
    spec: dict[str, Any] = worker(overlay)["template"]["spec"]
    return spec


SECURITY_FAULTS: dict[str, tuple[Break, str]] = {
    "account": (lambda one: pod(one).pop("automountServiceAccountToken"), "automountServiceAccountToken"),
    "network of the host": (lambda one: pod(one).update(hostNetwork=True), "hostNetwork"),
    "folder of the host": (
        lambda one: pod(one)["volumes"].append({"name": "h", "hostPath": {"path": "/"}}),
        "volume h",
    ),
    "root": (lambda one: container(one)["securityContext"].update(runAsNonRoot=False), "runAsNonRoot: got False"),
    "capabilities": (lambda one: container(one)["securityContext"].pop("capabilities"), "capabilities: got None"),
    "file system": (lambda one: container(one)["securityContext"].pop("readOnlyRootFilesystem"), "readOnlyRoot"),
    "memory without limit": (lambda one: container(one)["resources"]["limits"].pop("memory"), "must have memory"),
    "sidecar": (lambda one: cluster(one)["autoscalerOptions"].pop("resources"), "autoscaler: resources.limits"),
    "no token": (lambda one: cluster(one).pop("authOptions"), "authOptions: mode must be token"),
    "open namespace": (
        lambda one: named(one, "NetworkPolicy", "deny-all")["spec"].update(ingress=[{}]),
        "no NetworkPolicy that denies",
    ),
}


@pytest.mark.parametrize("fault", SECURITY_FAULTS)
def test_a_right_too_many_is_found(fault: str) -> None:
    change, words = SECURITY_FAULTS[fault]
    (found,) = security.check(broken("overlays/gpu", change))
    assert words in found


def test_a_folder_that_does_not_render_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kustomization"):
        Overlay.render(tmp_path)


@pytest.mark.parametrize("page", commands.pages(REPOSITORY), ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_command_lines_in_pages_have_no_fault(page: Path) -> None:
    assert commands.check_page(page.read_text("utf-8")) == []


def test_all_pages_are_looked_at() -> None:
    names = {str(page.relative_to(REPOSITORY)) for page in commands.pages(REPOSITORY)}
    assert {"README.md", "k8s/README.md", "benchmarks/README.md"} <= names


def test_command_lines_are_found_in_scripts() -> None:
    script = """
    # Don't read this: fashion-rag serve --nothing
    [ -f "$COMPILED/manifest.json" ] || fashion-rag export onnx /models/bundle \\
        --out "$COMPILED" > log 2>&1
    if WORK=/tmp/work exec /usr/bin/fashion-rag serve --port 80|tee log; then (fashion-rag search "a # b; c") & fi
    kubectl -n fashion-rag exec loader -- fashion-rag bundle check /models/bundle  # and this: fashion-rag
    kubectl -n fashion-rag exec loader -- sh -ec 'cd /models; fashion-rag index build "$(ls)"'
    echo fashion-rag
    """
    assert list(commands.command_lines(script)) == [
        ["export", "onnx", "/models/bundle", "--out", "$COMPILED"],
        ["serve", "--port", "80"],
        ["search", "a # b; c"],
        ["bundle", "check", "/models/bundle"],
        ["index", "build", "$(ls)"],
    ]


COMMAND_FAULTS = {
    'fashion-rag export onnx /models/bundle "$COMPILED"': "Missing option '--out'",
    "fashion-rag export onnx --out /models/compiled": "Missing argument 'bundle'",
    "fashion-rag export onnx a b --out c": "Got unexpected extra argument",
    "fashion-rag serve --prot 80": "No such option: --prot",
    "fashion-rag serve --port $PORT --host": "'--host' requires an argument",
    "fashion-rag serve --port eighty": "Invalid value for '--port'",
    "fashion-rag export coreml a": "there is no command coreml; there are measure, onnx, tensorrt",
    "fashion-rag export": "is not a whole command",
    "fashion-rag serve 'a": "not a shell script",
}


@pytest.mark.parametrize("script", COMMAND_FAULTS)
def test_a_wrong_command_line_is_found(script: str) -> None:
    (found,) = commands.check_script(f"cd /models\n{script}\necho done")
    assert COMMAND_FAULTS[script] in found


@pytest.mark.parametrize(
    "script",
    [
        "fashion-rag serve --port $PORT",
        "fashion-rag index build ... --out a",
        "fashion-rag edit --help",
        "fashion-rag ...",
    ],
)
def test_variables_elisions_and_help_are_no_faults(script: str) -> None:
    assert commands.check_script(script) == []


def test_a_wrong_command_line_is_found_in_a_manifest() -> None:
    def job(command: list[str], args: list[str]) -> Break:
        def change(overlay: Overlay) -> None:
            spec = named(overlay, "Job", "fashion-rag-models")["spec"]["template"]["spec"]
            spec["containers"][0] |= {"command": command, "args": args}

        return change

    for command, args in (
        (["sh", "-ec", "set -x\nfashion-rag export onnx /models/bundle $COMPILED"], []),
        (["fashion-rag", "export"], ["onnx", "/models/bundle", "$(COMPILED)"]),
        ([], ["fashion-rag", "export", "onnx", "/models/bundle"]),
    ):
        (found,) = commands.check(broken("overlays/cpu-demo", job(command, args)))
        assert "Job fashion-rag-models" in found and "Missing option '--out'" in found


def test_wrong_command_lines_are_found_in_a_page() -> None:
    fence = "```"
    page = f"""
    Run `fashion-rag serve` or `fashion-rag index versions --activate
    NAME`, never `fashion-rag search`:
    {fence}bash run
    fashion-rag export onnx my-bundle my-compiled   # each network
    {fence}
    {fence}python
    fashion-rag serve --nothing
    {fence}
    """
    found = commands.check_page(page)
    assert [fault.partition(": ")[2] for fault in found] == ["Missing option '--out'.", "Missing option '--catalogue'."]
