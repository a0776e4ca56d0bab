"""Settings: names of earlier releases are read, and said."""

import logging

import pytest

from clipft_tasks.core.settings import RENAMED, Settings, read_renamed, settings
from clipft_tasks.ops.gc import Policy
from serving.inference.settings import ServingSettings
from serving.worker_gateway.settings import GatewaySettings


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


def test_every_name_of_today_is_a_setting():
    kinds = (Settings, ServingSettings, GatewaySettings, Policy)
    known = {f"{kind.model_config['env_prefix']}{field}".upper() for kind in kinds for field in kind.model_fields}
    assert set(RENAMED.values()) <= known and not set(RENAMED) & known


def test_the_server_reads_old_names_too(home, monkeypatch):
    monkeypatch.setenv("CLIPFT_SERVING_MAX_IMAGE_MB", "")
    monkeypatch.delenv("CLIPFT_SERVING_MAX_IMAGE_MB")
    monkeypatch.setenv("CLIPFT_SERVING_MAX_PICTURE_MB", "7")
    assert ServingSettings().max_image_mb == 7


def test_settings_read_old_names(home, monkeypatch):
    monkeypatch.setenv("CLIPFT_GATEWAY_URL", "")  # undone afterwards, whatever is set meanwhile
    monkeypatch.delenv("CLIPFT_GATEWAY_URL")
    monkeypatch.setenv("CLIPFT_DOOR_URL", "http://elsewhere:1")
    settings.cache_clear()
    assert settings().gateway_url == "http://elsewhere:1"
