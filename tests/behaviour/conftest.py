"""A module's server, with a registry of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.live_server import Plain, Server, copied, package, trained, use

from clipft_tasks.core.settings import settings


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, mlflow_tables: None) -> Path:
    return tmp_path_factory.getbasetemp() / "two-versions"


@pytest.fixture(scope="module")
def own(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home that this module's server and this process share."""
    home = copied(trained(base), tmp_path_factory.mktemp("server") / "home")
    with pytest.MonkeyPatch.context() as patch:
        use(home, patch)
        yield home
    settings.cache_clear()


@pytest.fixture(scope="module")
def plain(own: Path) -> dict[str, Plain]:
    return {version: Plain(package(version)) for version in ("1", "2")}


@pytest.fixture(scope="module")
def shared(own: Path) -> Iterator[Server]:
    with Server(own, max_body_mb=1) as server:
        yield server.ready()


@pytest.fixture
def server(shared: Server) -> Server:
    """The module's server, with version 1 live."""
    assert shared.put("1").status_code == 200
    return shared


@pytest.fixture
def elsewhere(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: Path) -> Iterator[Path]:
    """Another copy of the registry, for a test that changes it; this process points at it."""
    home = copied(trained(base), tmp_path / "home")
    with pytest.MonkeyPatch.context() as patch:
        use(home, patch)
        yield home
    settings.cache_clear()
