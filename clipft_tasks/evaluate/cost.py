"""What a training took: time, memory, energy, and what that costs. Energy is an estimate, and says what it rests on."""

import logging
import re
from collections.abc import Mapping
from statistics import fmean

from mlflow.entities import Run

from .. import tracking
from ..contracts.comparison import TrainingCost
from ..core.settings import settings
from ..devices import backends

METER = re.compile(r"system/gpu_\d+_power_usage_watts")  # MLflow's own, where the driver tells
PRICE = re.compile(r"(\d+(?:\.\d+)?) (\S{1,8})")
log = logging.getLogger("clipft")


def of_run(run: Run) -> TrainingCost:
    """What the training of an MLflow run took, as far as the run says."""
    peak_gb, watts = measured(run)
    return estimate(run.info.run_name or "", run.data.params, run.data.metrics, measured=watts, peak_gb=peak_gb)


def measured(run: Run) -> tuple[float | None, float | None]:
    """The most memory (GiB) that a run's training took, and the mean power (watts) of all GPUs; None for what was not logged."""
    client, run_id = tracking.client(), run.info.run_id
    memory = client.get_metric_history(run_id, "train.memory_gb")
    meters = [client.get_metric_history(run_id, meter) for meter in run.data.metrics if METER.fullmatch(meter)]
    watts = sum(fmean(each.value for each in meter) for meter in meters)
    return max((metric.value for metric in memory), default=None), watts or None


def estimate(
    name: str,
    params: Mapping[str, str],
    metrics: Mapping[str, float],
    *,
    measured: float | None = None,
    peak_gb: float | None = None,
    watts: float | None = None,
) -> TrainingCost:
    """What a training took.

    Args:
        params, metrics: of its run.
        measured: mean power of all GPUs by their own meters; None where there are none.
        peak_gb: most memory that it took.
        watts: of one device; None: its meter, or an assumption by its kind.
    """
    device, pairs, pace = params.get("plan.device"), metrics.get("pairs"), metrics.get("pairs_per_second")
    if not pace or not pairs:
        return TrainingCost(name=name, device=device, pairs=pairs, memory_gb=peak_gb)
    processes = int(params.get("plan.processes") or 1)
    if watts is None and measured:
        power, assumed = measured, f"mean of the GPU's own meter, {measured:.0f} W"
    else:
        usual = {kind.name: kind.watts for kind in backends()}  # under load, and shown as assumed
        each = watts if watts is not None else usual.get(device or "cpu", usual["cpu"])
        power = each * processes
        how = "as given" if watts is not None else f"assumed for {device or 'cpu'}"
        assumed = f"{each:.0f} W {how}" + (f", {processes} devices" if processes > 1 else "")
    energy = power * pairs / pace / 3600
    return TrainingCost(
        name=name,
        device=device,
        pairs=pairs,
        seconds=pairs / pace,
        memory_gb=peak_gb,
        energy_wh=energy,
        assumed=assumed,
        price=_price(energy),
    )


def _price(energy_wh: float) -> str:
    """What energy costs, with its currency; "" where no price is set."""
    asked = settings().energy_price
    if not asked:
        return ""
    if not (match := PRICE.fullmatch(asked.strip())):
        log.warning("CLIPFT_ENERGY_PRICE %r is no price of a kilowatt-hour, such as `0.30 EUR`: costs are left out.", asked)
        return ""
    return f"{float(match[1]) * energy_wh / 1000:.2g} {match[2]}"
