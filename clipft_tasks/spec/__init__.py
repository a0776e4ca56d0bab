"""The spec: the one description of a run.

Its JSON schema makes the Airflow form, the CLI options, the MLflow parameters and `params.yaml`. In those flat places a
field is known by its dotted name (`train.epochs`). A field that is left out takes the domain's choice, then the general
default written in its section. Importing this package stays cheap: DAG files do it at parse time.
"""

from .data_spec import DataSpec
from .form import form
from .run_spec import SECTIONS, RunSpec
from .sections import (
    ApprovalSpec,
    BlendSpec,
    DeviceName,
    EvaluateSpec,
    GateSpec,
    MemorySpec,
    ModelSpec,
    ObjectiveSpec,
    ResolutionSpec,
    RolloutSpec,
    TuneSpec,
)
from .train_spec import TrainSpec

__all__ = [
    "SECTIONS", "ApprovalSpec", "BlendSpec", "DataSpec", "DeviceName", "EvaluateSpec", "GateSpec", "MemorySpec", "ModelSpec", "ObjectiveSpec",
    "ResolutionSpec", "RolloutSpec", "RunSpec", "TrainSpec", "TuneSpec", "form",
]  # fmt: skip
