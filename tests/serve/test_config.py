"""Tests that the settings refuse what a graph could not run with."""

import json

import pytest

from fashion_rag.request import Shortcuts, Solver
from fashion_rag.sampling import Preset
from serve.config import (
    BatchSettings,
    ConditionerSettings,
    Config,
    DenoiserSettings,
    IngressSettings,
    ServeConfig,
)


def test_args_may_be_strings() -> None:
    config = ServeConfig.from_args({"bundle": "b", "catalogue": "c", "num_threads": "2", "replica_cpus": "0.5"})
    assert config == ServeConfig("b", "c", num_threads=2, replica_cpus=0.5)


@pytest.mark.parametrize(
    "settings",
    [
        IngressSettings(max_edits=3, presets={"draft": Preset(steps=4, guidance_scale=1.0)}),
        DenoiserSettings(max_rows=4, margin_s=0.1),
        ConditionerSettings(max_batch=2, cache_bytes=1),
        BatchSettings(max_batch=3),
        ServeConfig("b", "c", denoiser=DenoiserSettings(max_waiting=3)),
    ],
)
def test_settings_survive_a_config_file(settings: Config) -> None:
    assert type(settings).from_args(json.loads(json.dumps(settings.to_args()))) == settings


def test_the_shortcuts_of_a_preset_may_stand_beside_its_steps() -> None:
    flat = {"presets": {"draft": {"steps": 8}, "quick": {"solver": "unipc", "steps": 10}}}
    presets = {"draft": Preset(8), "quick": Preset(10, shortcuts=Shortcuts(Solver.UNIPC))}
    assert IngressSettings.from_args(flat).presets == presets


@pytest.mark.parametrize(
    ("kind", "args", "field"),
    [
        (ServeConfig, {"bundle": ""}, "bundle"),
        (ServeConfig, {"catalogue": ""}, "catalogue"),
        (ServeConfig, {"replica_cpus": 0}, "replica_cpus"),
        (ServeConfig, {"replica_cpus": "nan"}, "replica_cpus"),
        (ServeConfig, {"num_threads": 0}, "num_threads"),
        (ServeConfig, {"num_threads": "many"}, "num_threads"),
        (ServeConfig, {"max_replicas": 0}, "max_replicas"),
        (ServeConfig, {"drain_s": -1}, "drain_s"),
        (ServeConfig, {"num_gpus": 1}, "num_gpus"),
        (ServeConfig, {"ingress": {"max_edits": 0}}, "max_edits"),
        (IngressSettings, {"retry_after_s": -1}, "retry_after_s"),
        (IngressSettings, {"deadline_s": 0}, "deadline_s"),
        (IngressSettings, {"max_pixels": 0}, "max_pixels"),
        (IngressSettings, {"max_uploads": 0}, "max_uploads"),
        (IngressSettings, {"upload_s": 0}, "upload_s"),
        (IngressSettings, {"upload_stall_s": "nan"}, "upload_stall_s"),
        (IngressSettings, {"presets": {"draft": {"steps": 0}}}, "steps"),
        (IngressSettings, {"presets": {"draft": {"colour": 1}}}, "colour"),
        (IngressSettings, {"presets": {"draft": {"shortcuts": {"colour": 1}}}}, "colour"),
        (IngressSettings, {"presets": {"draft": {"solver": "unipc", "shortcuts": {}}}}, "beside solver"),
        (DenoiserSettings, {"max_rows": 1}, "max_rows"),
        (DenoiserSettings, {"max_waiting": 0}, "max_waiting"),
        (DenoiserSettings, {"margin_s": -1}, "margin_s"),
        (DenoiserSettings, {"rows": 4}, "rows"),
        (BatchSettings, {"max_batch": 0}, "max_batch"),
        (ConditionerSettings, {"cache_bytes": -1}, "cache_bytes"),
    ],
)
def test_wrong_args_are_refused_by_name(kind: type[Config], args: dict[str, object], field: str) -> None:
    whole = {"bundle": "b", "catalogue": "c"} | args if kind is ServeConfig else args
    with pytest.raises(ValueError, match=field):
        kind.from_args(whole)


def test_bundle_and_catalogue_are_required() -> None:
    with pytest.raises(ValueError, match="catalogue"):
        ServeConfig.from_args({"bundle": "b"})
