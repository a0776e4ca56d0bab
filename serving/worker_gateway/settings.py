"""What the worker gateway reads from its environment."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from clipft_tasks.core.settings import EnvironmentSettings


class GatewaySettings(EnvironmentSettings):
    """Addresses are those that a worker must use, as seen from outside. The revision that it is told comes from CLIPFT_REVISION
    where the code lies in an image (clipft_tasks/core/versions.py)."""

    model_config = SettingsConfigDict(env_prefix="CLIPFT_", extra="ignore")

    gateway_home: Path = Field(Path(".clipft/worker-gateway"), description="folder of the table of workers")
    gateway_secret: SecretStr = Field(description="what every worker's secret and the gateway's signature are derived from")
    gateway_token: SecretStr = Field(description="what an operator shows to invite and revoke")
    team_user: str = Field("team", description="whom MLflow's pages and the data ask people for")
    team_password: SecretStr | None = Field(None, description="their password; none: people are turned away there")
    airflow_address: str = Field("http://127.0.0.1:8080", description="Airflow, and below it /gateway")
    mlflow_address: str = Field("http://127.0.0.1:5050", description="MLflow")
    mlflow_uri: str = Field("", description="MLflow as the gateway reaches it, to see that a model's files are written once")
    data_address: str = Field("http://127.0.0.1:8090", description="datasets.git and objects")
    store_bucket: str = Field("http://store:8333/data", description="the bucket of data sets, as the reverse proxy calls it")
    store_reader_key: str = Field(
        "", description="an identity of the store that may read that bucket; none: no objects are handed out"
    )
    store_reader_secret: SecretStr = Field(SecretStr(""), description="its secret")
    tuning_url: str | None = Field(None, description="database of tuning studies; none: workers bring their own")
