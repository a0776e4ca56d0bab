"""Settings: names of earlier releases are read, and said."""

import logging

import pytest

from clipft_tasks.core.settings import RENAMED, read_renamed, settings


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_variable_by_its_old_name_counts_and_is_said(caplog, old, new):
    environment = {old: "value"}
    with caplog.at_level(logging.WARNING):
        read_renamed(environment)
    assert environment[new] == "value" and f"{old} is called {new} now" in caplog.text


def test_where_both_names_are_set_that_of_today_counts_in_silence(caplog):
    environment = {"CLIPFT_DOOR_URL": "old", "CLIPFT_GATEWAY_URL": "new"}
    read_renamed(environment)
    assert environment["CLIPFT_GATEWAY_URL"] == "new" and not caplog.text


def test_settings_read_old_names(home, monkeypatch):
    monkeypatch.setenv("CLIPFT_GATEWAY_URL", "")  # undone afterwards, whatever is set meanwhile
    monkeypatch.delenv("CLIPFT_GATEWAY_URL")
    monkeypatch.setenv("CLIPFT_DOOR_URL", "http://elsewhere:1")
    settings.cache_clear()
    assert settings().gateway_url == "http://elsewhere:1"
