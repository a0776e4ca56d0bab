"""Where the shared services are. Every value comes from `CLIPFT_<NAME>` or an embedded default under `./.clipft/`.

Settings say *where things are*; what a run does is in `spec.RunSpec`, and nowhere else.
"""

import logging
import os
from collections.abc import MutableMapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from .errors import ClipftError

log = logging.getLogger("clipft")
HOME = ".clipft"
CHECKOUT = Path(__file__).resolve().parents[2]  # clipft's own folder, where it runs from a clone
RENAMED = {  # names of earlier releases, which are still read
    "CLIPFT_DOOR_URL": "CLIPFT_GATEWAY_URL",
    "CLIPFT_DOOR_TOKEN": "CLIPFT_GATEWAY_TOKEN",
    "CLIPFT_DOOR_SECRET": "CLIPFT_GATEWAY_SECRET",
    "CLIPFT_DOOR_HOME": "CLIPFT_GATEWAY_HOME",
    "CLIPFT_SERVING_MAX_PICTURE_MB": "CLIPFT_SERVING_MAX_IMAGE_MB",
}


class EnvironmentSettings(BaseSettings):
    """Settings that come from environment variables, by the names of today or of an earlier release."""

    model_config = SettingsConfigDict(extra="ignore")

    def __init__(self, **values: Any) -> None:  # of the fields
        read_renamed()
        super().__init__(**values)


class Settings(EnvironmentSettings):
    """Addresses, folders and credentials of one installation."""

    model_config = SettingsConfigDict(env_prefix="CLIPFT_", extra="ignore")

    home: Path = Field(
        Path(HOME),
        description="folder of everything that is kept on this machine; default: .clipft here, or above, if there is one",
    )
    mlflow_uri: str | None = Field(None, description="MLflow tracking and registry; default: SQLite under home")
    mlflow_ui: str = Field("http://127.0.0.1:5050", description="address of MLflow's pages, for links")
    data_repo: str | None = Field(None, description="git repository of data sets, path or URL; default: home/datasets")
    dvc_remote: str | None = Field(None, description="DVC remote, folder or URL; default: home/dvc-remote")
    tuning_url: str | None = Field(None, description="database of tuning studies (SQLAlchemy URL); default: SQLite under home")
    server_url: str = Field("http://127.0.0.1:8800", description="the clipft server")
    server_ui: str = Field("", description="address of the server's pages, for links; default: server_url")
    prometheus_url: str = Field("", description="Prometheus; empty: drift is read from the server's own metrics")
    alertmanager_url: str = Field("", description="Alertmanager; empty: there is none")
    grafana_url: str = Field("", description="Grafana; empty: there is none")
    airflow_url: str = Field(
        "http://127.0.0.1:8080", description="Airflow's pages and API, for `clipft doctor` and `clipft gc`"
    )
    airflow_user: str = Field("admin", description="who asks Airflow")
    airflow_password: SecretStr | None = Field(None, description="that user's password")
    airflow_db: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("CLIPFT_AIRFLOW_DB", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"),
        description="Airflow's own database (SQLAlchemy URL), for backup and upgrade; default: SQLite under home",
    )
    mlflow_store: SecretStr | None = Field(
        None, description="MLflow's own database (SQLAlchemy URL), for backup, gc and upgrade; default: SQLite under home"
    )
    alert_token: SecretStr | None = Field(None, description="what Alertmanager must show to call back")
    notify: SecretStr | None = Field(
        None, description="whom to tell, by mail, Slack or webhook: addresses separated by spaces (clipft_tasks/ops/notify.py)"
    )
    approvers: str = Field("", description="who may answer approvals, names separated by spaces; empty: whoever may start runs")
    server_token: SecretStr | None = Field(None, description="what a caller must show to change the server's state")
    server_keys: str = Field("", description="file of the keys of the server's clients; default: server-keys.json under home")
    accelerator_queue: str = Field("default", description="Airflow queue of training and evaluation tasks")
    accelerator_executor: str | None = Field(None, description="Airflow executor of those tasks, e.g. EdgeExecutor")
    accelerator_slots: int = Field(16, ge=1, description="tasks for accelerators at a time; every worker of a team runs one")
    staging: str = Field(
        "",
        description="store by which tasks on several machines hand staged rows over (`s3://bucket/staging`); empty: a folder under home",
    )
    ingest_parts: int = Field(
        1, ge=1, le=1000, description="tasks among which the images of one ingest are decoded, on any machines"
    )
    pseudonyms_key: str = Field(
        "", description="file of the key of pseudonyms, where several machines share it; default: pseudonyms.key under home"
    )
    sources_allowed: str = Field(
        "",
        description="places that sources may be brought from: `s3://bucket/folder`, `https://host/folder`, separated by spaces",
    )
    domains_path: str = Field("", description="files or folders with domains of your own, separated like PATH")
    drift_signals: str = Field("", description="drift signals of your own, module:Class, separated by commas")
    cache_gb: float = Field(50, ge=0, description="most space that decoded images may take under home, GiB")
    shards_gb: float = Field(0, ge=0, description="most space that fetched shards may take under home, GiB; 0 keeps all")
    worker_name: str = Field("", description="who this worker is to a team's control plane")
    worker_secret: SecretStr | None = Field(None, description="its secret, for data and tuning studies over HTTP")
    upload_seconds: float = Field(
        0, ge=0, description="seconds between checkpoints that go to MLflow; 0: they stay on this disk"
    )
    gateway_url: str = Field("http://127.0.0.1:8070", description="the worker gateway, for its operator")
    gateway_token: SecretStr | None = Field(None, description="what an operator shows to the worker gateway")
    backups_kept: int = Field(
        0, ge=0, description="how many backups of `clipft_maintenance` are kept, the oldest go first; 0: all of them"
    )
    lineage: str = Field(
        "",
        description="where OpenLineage events of each stage go: a file, or the http(s) address of a receiver; empty: nowhere",
    )
    lineage_key: SecretStr | None = Field(None, description="what that receiver is shown, as a bearer token")
    energy_price: str = Field(
        "", description="price of a kilowatt-hour, such as `0.30 EUR`, for what a training costs; empty: no cost is said"
    )
    threads: int | None = Field(None, description="CPU threads for PyTorch; default: the cores this process may use")

    @property
    def root(self) -> Path:
        """The home: as given, else this folder's or that of the nearest folder above which has one, as git looks for its own."""
        own = self.home.expanduser().resolve()
        if self._home_is_given or own.exists() or own.parent == CHECKOUT:
            return own
        return next((home for folder in own.parents[1:] if (home := folder / HOME).is_dir()), own)

    @property
    def _home_is_given(self) -> bool:
        return "home" in self.model_fields_set

    @property
    def mlflow_pages(self) -> str:
        """The address of MLflow's pages; "" where runs are kept in a file, which has none."""
        return self.mlflow_ui if "mlflow_ui" in self.model_fields_set or not self.tracking_uri.startswith("sqlite:") else ""

    @property
    def tracking_uri(self) -> str:
        return self.mlflow_uri or f"sqlite:///{self.root / 'mlflow' / 'mlflow.db'}"

    @property
    def server_keys_file(self) -> Path:
        """Where the keys of the server's clients are listed (`clipft key`)."""
        return Path(self.server_keys).expanduser() if self.server_keys else self.root / "server-keys.json"

    @property
    def studies(self) -> str:
        return self.tuning_url or f"sqlite:///{self.folder('tuning') / 'studies.db'}"

    @property
    def databases(self) -> dict[str, str]:
        """Where Airflow, MLflow and the tuning studies keep their tables (SQLAlchemy URLs), by name."""
        airflow = self.airflow_db.get_secret_value() if self.airflow_db else f"sqlite:///{self.root / 'airflow' / 'airflow.db'}"
        own = self.mlflow_store.get_secret_value() if self.mlflow_store else f"sqlite:///{self.root / 'mlflow' / 'mlflow.db'}"
        return {"airflow": airflow, "mlflow": own, "tuning": self.studies}

    @property
    def reads_only(self) -> bool:
        """Whether data comes over HTTP, where nothing can be pushed to."""
        return self.remote.startswith(("http://", "https://"))

    @property
    def credentials(self) -> tuple[str, str] | None:
        """Name and secret of this worker, where it is one."""
        return (self.worker_name, self.worker_secret.get_secret_value()) if self.worker_secret else None

    @property
    def datasets(self) -> str:
        return self.data_repo or str(self.root / "datasets")

    @property
    def working_copy(self) -> Path:
        """The repository of data sets on this machine: itself, or the clone of the one that `data_repo` names by URL."""
        source = self.datasets
        return self.root / "datasets" if is_url(source) else Path(source).expanduser().resolve()

    @property
    def remote(self) -> str:
        if self.dvc_remote and "://" in self.dvc_remote:
            return self.dvc_remote
        return str(Path(self.dvc_remote).expanduser().resolve() if self.dvc_remote else self.root / "dvc-remote")

    @property
    def worker_lock(self) -> Path:
        """The file that the worker of this home holds while it runs."""
        return self.root / "worker" / "run.lock"

    def folder(self, *parts: str) -> Path:
        """A folder under home, created when missing.

        Raises: ClipftError where that would put a home into some folder that nobody named, or a file is in its place.
        """
        path = self.root.joinpath(*parts)
        if not self._home_is_given and not self.root.exists() and self.root.parent != CHECKOUT:
            raise ClipftError(
                f"the home of clipft in {self.root.parent}",
                "there is none, neither here nor in a folder above",
                f"Name one: `export CLIPFT_HOME=~/{HOME}` (it is made); or go where `make up` ran.",
                code="home.not_found",
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ClipftError(
                f"folder {path}", "there is a file in its place", "Move that away, or set CLIPFT_HOME to another folder.",
                code="home.no_folder",
            ) from None  # fmt: skip
        return path


def is_url(source: str) -> bool:
    """Is it a URL (or git's `host:path`), and no folder?"""
    return "://" in source or (source.count(":") == 1 and not Path(source).is_absolute())


def read_renamed(environment: MutableMapping[str, str] = os.environ) -> None:
    """Give variables that are set by the name of an earlier release their name of today, and log a warning for each."""
    for old, new in RENAMED.items():
        if old in environment and new not in environment:
            environment[new] = environment[old]
            log.warning("%s is called %s now: rename it where it is set.", old, new)


@cache
def settings() -> Settings:
    """The settings of this process, read once. `settings.cache_clear()` reads them anew."""
    return Settings()
