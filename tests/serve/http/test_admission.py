"""Tests that edits and bodies are limited as the settings say, in all and for each key, and counted until they end."""

from contextlib import ExitStack
from dataclasses import replace

import pytest

from fashion_rag.errors import Overloaded
from serve.config import IngressSettings
from serve.http.admission import Admission, RateLimited

SETTINGS = IngressSettings(max_edits=4, max_edits_per_key=2, max_uploads=3, retry_after_s=7)


def test_a_full_house_refuses_and_recovers() -> None:
    admission = Admission(SETTINGS)
    with ExitStack() as held:
        for _ in range(4):
            held.enter_context(admission.hold(None, 1))
        with pytest.raises(Overloaded, match="4 edits are in flight") as refused, admission.hold(None, 1):
            pass
        assert refused.value.retry_after_s == 7
        assert not isinstance(refused.value, RateLimited)
    with admission.hold(None, 4):
        assert admission.num_edits == 4
    assert admission.num_edits == 0


def test_a_key_is_refused_for_its_own_edits_only() -> None:
    admission = Admission(SETTINGS)
    with admission.hold("a", 2):
        with pytest.raises(RateLimited, match="key a may have 2"), admission.hold("a", 1):
            pass
        with admission.hold("b", 2):
            pass
    with admission.hold("a", 2):
        pass


def test_several_at_once_go_in_together_or_not_at_all() -> None:
    admission = Admission(SETTINGS)
    with admission.hold(None, 2):
        with pytest.raises(Overloaded), admission.hold(None, 3):
            pass
        assert admission.num_edits == 2


def test_an_error_inside_lets_out() -> None:
    admission = Admission(SETTINGS)
    with pytest.raises(ValueError), admission.hold("a", 2):
        raise ValueError
    assert admission.num_edits == 0
    with admission.hold("a", 2):
        pass


def test_new_settings_hold_at_once() -> None:
    admission = Admission(SETTINGS)
    with admission.hold("a", 2):
        admission.settings = replace(SETTINGS, max_edits_per_key=3)
        with admission.hold("a", 1):
            pass


def test_bodies_on_their_way_take_no_places_of_edits() -> None:
    admission = Admission(SETTINGS)
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(admission.upload(None))
        with pytest.raises(Overloaded, match="3 bodies are being read") as refused, admission.upload(None):
            pass
        assert refused.value.retry_after_s == 7
        with admission.hold(None, 4):
            pass
    with admission.upload(None):
        pass


def test_no_body_is_read_for_an_edit_that_would_be_refused() -> None:
    admission = Admission(SETTINGS)
    with admission.hold(None, 4), pytest.raises(Overloaded, match="4 edits are in flight"), admission.upload(None):
        pass
    assert admission.num_uploads == 0


def test_a_keys_bodies_count_among_its_edits() -> None:
    admission = Admission(SETTINGS)
    with admission.upload("a"), admission.hold("a", 1):
        with pytest.raises(RateLimited), admission.upload("a"):
            pass
        with admission.upload("b"):
            pass
    with admission.hold("a", 2):
        pass
