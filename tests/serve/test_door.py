"""The door lets in as many as its settings say, over all and of each key, and counts who leaves."""

from contextlib import ExitStack
from dataclasses import replace

import pytest

from fashion_rag.errors import Overloaded
from serve.config import IngressSettings
from serve.door import Door, RateLimited

SETTINGS = IngressSettings(max_edits=4, max_edits_per_key=2, max_uploads=3, retry_after_s=7)


def test_a_full_house_refuses_and_recovers() -> None:
    door = Door(SETTINGS)
    with ExitStack() as held:
        for _ in range(4):
            held.enter_context(door.hold(None, 1))
        with pytest.raises(Overloaded, match="4 edits are in flight") as refused, door.hold(None, 1):
            pass
        assert refused.value.retry_after_s == 7
        assert not isinstance(refused.value, RateLimited)
    with door.hold(None, 4):
        assert door.num_edits == 4
    assert door.num_edits == 0


def test_a_key_is_refused_for_its_own_edits_only() -> None:
    door = Door(SETTINGS)
    with door.hold("a", 2):
        with pytest.raises(RateLimited, match="key a may have 2"), door.hold("a", 1):
            pass
        with door.hold("b", 2):
            pass
    with door.hold("a", 2):
        pass


def test_several_at_once_go_in_together_or_not_at_all() -> None:
    door = Door(SETTINGS)
    with door.hold(None, 2):
        with pytest.raises(Overloaded), door.hold(None, 3):
            pass
        assert door.num_edits == 2


def test_an_error_inside_lets_out() -> None:
    door = Door(SETTINGS)
    with pytest.raises(ValueError), door.hold("a", 2):
        raise ValueError
    assert door.num_edits == 0
    with door.hold("a", 2):
        pass


def test_new_settings_hold_at_once() -> None:
    door = Door(SETTINGS)
    with door.hold("a", 2):
        door.settings = replace(SETTINGS, max_edits_per_key=3)
        with door.hold("a", 1):
            pass


def test_bodies_on_their_way_take_no_places_of_edits() -> None:
    door = Door(SETTINGS)
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(door.upload(None))
        with pytest.raises(Overloaded, match="3 bodies are being read") as refused, door.upload(None):
            pass
        assert refused.value.retry_after_s == 7
        with door.hold(None, 4):
            pass
    with door.upload(None):
        pass


def test_no_body_is_read_for_an_edit_that_would_be_refused() -> None:
    door = Door(SETTINGS)
    with door.hold(None, 4), pytest.raises(Overloaded, match="4 edits are in flight"), door.upload(None):
        pass
    assert door.num_uploads == 0


def test_a_keys_bodies_count_among_its_edits() -> None:
    door = Door(SETTINGS)
    with door.upload("a"), door.hold("a", 1):
        with pytest.raises(RateLimited), door.upload("a"):
            pass
        with door.upload("b"):
            pass
    with door.hold("a", 2):
        pass
