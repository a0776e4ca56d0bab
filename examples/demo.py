"""`make demo`: solar cells from a PyPI package to a served, promoted, verified model, through the real Airflow.

Takes at most six minutes on two cores once the packages are installed. Ends with one screen, also kept as
`.clipft/demo/summary.json`.
"""

import argparse
import base64
import json
import sys
import time
from pathlib import Path

import httpx
from rich.panel import Panel
from rich.table import Table

from clipft_tasks.contracts.evaluation import of_groups
from clipft_tasks.core.errors import ClipftError
from clipft_tasks.core.settings import settings
from clipft_tasks.ops.airflow_client import Airflow
from deploy.local import stack
from deploy.local.environment import address, airflow_client, environment

from .follow import Summary, console, follow

DATA = {"domain": "industrial", "source": "elpv:mono"}
TRAINING = {"domain": "industrial"}


def main(epochs: int = 3) -> None:
    """Run both DAGs and show what came of it.

    Raises: ClipftError with the words of the task that failed.
    """
    began = time.monotonic()
    stack.up()
    started = time.monotonic()
    airflow = airflow_client()
    console.rule("data: clipft_dataset")
    data_run = follow(airflow, "clipft_dataset", airflow.trigger("clipft_dataset", DATA))
    version = airflow.result("clipft_dataset", data_run, "version")
    console.rule("model: clipft_finetune")
    conf = TRAINING | {"dataset": version["dataset"], "train.epochs": epochs}
    run = follow(airflow, "clipft_finetune", airflow.trigger("clipft_finetune", conf))
    summary = _collect(airflow, data_run, run, version)
    summary["answer"] = _ask(version["dataset"])
    summary["seconds"] |= {"stack": round(started - began, 1), "total": round(time.monotonic() - began, 1)}
    folder = settings().folder("demo")
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    _show(summary, folder / "summary.json")


def _collect(airflow: Airflow, data_run: str, run: str, version: Summary) -> Summary:
    gate = airflow.result("clipft_finetune", run, "gate")
    verify = airflow.result("clipft_finetune", run, "verify")
    trained = airflow.result("clipft_finetune", run, "finetune")
    validated = airflow.result("clipft_dataset", data_run, "validate")
    ingested = airflow.result("clipft_dataset", data_run, "ingest")
    seconds: dict[str, float] = {}
    for dag, dag_run in (("clipft_dataset", data_run), ("clipft_finetune", run)):
        for task in airflow.tasks(dag, dag_run):
            seconds[task["task_id"]] = round(seconds.get(task["task_id"], 0) + (task["duration"] or 0), 1)
    return {
        "data": {"ingested": ingested["rows"], "rejected": ingested["rejected"], "checks": validated["passed"],
                 "version": version["dataset"], "new": version["new"], "counts": version["counts"], "license": ingested["license"]},
        "metric": gate["metric"],
        "scores": gate["scores"],
        "model": airflow.result("clipft_finetune", run, "register")["model"],
        "version": verify["version"],
        "disagreement": verify["disagreement"],
        "trained_before": trained["done_before"],
        "run_id": trained["run_id"],
        "links": {"data report": validated["links"]["Data report"], "MLflow run": trained["links"]["MLflow run"],
                  "Airflow run": f"{address('airflow')}/dags/clipft_finetune/runs/{run}"},
        "seconds": seconds,
    }  # fmt: skip


def _ask(dataset: str) -> Summary:
    """The server's answer to an image of the test split, which training never saw."""
    import os

    os.environ.update({k: v for k, v in environment().items() if k.startswith("CLIPFT_")})
    settings.cache_clear()
    from clipft_tasks.data import versioning

    data = versioning.fetch(versioning.find(dataset, dataset.split("/")[0]))
    test = data.split("test")
    row = test[test["label"] == "defective solar cell"].iloc[0]
    body = {"domain": "industrial", "images": {"base64": base64.b64encode(data.image_bytes(row)).decode()}}
    answer = httpx.post(f"{address('server')}/v1/classify", json=body, timeout=60)
    answer.raise_for_status()
    return {"image": row["name"], "truth": row["label"], **answer.json()["predictions"][0],
            "model_version": answer.headers["x-clipft-model-version"]}  # fmt: skip


def _show(summary: Summary, path: Path) -> None:
    data, seconds = summary["data"], summary["seconds"]
    behind = of_groups(max((f.get("groups", 0) for who in summary["scores"].values() for f in who.values()), default=0))
    what = f"{summary['metric'].replace('_', ' ')} on {data['counts']['test']} held-out images {behind}".rstrip()
    scores = Table(title=f"{what} [95% interval]")
    for name in ("image size", "start model", "fine-tuned", "gain in points"):
        scores.add_column(name, justify="right")
    for size, who in summary["scores"].items():
        cell = {w: f"{f['value']:.3f} [{f['low']:.2f}, {f['high']:.2f}]" for w, f in who.items()}
        gain = 100 * (who["candidate"]["value"] - who["start"]["value"])
        scores.add_row(f"{size} px", cell["start"], f"[bold]{cell['candidate']}[/]", f"{gain:+.1f}")
    answer = summary["answer"]
    told = [
        f"[bold]Data[/]     {data['ingested']} images taken, {data['rejected']} rejected, {data['checks']} checks passed: "
        f"[bold]{data['version']}[/]" + ("" if data["new"] else " (unchanged since the last run)"),
        f"         {data['license']}",
        f"[bold]Model[/]    {summary['model']} version [bold]{summary['version']}[/] is live and verified "
        f"(largest difference from its recorded answers {summary['disagreement']:.5f})"
        + ("; it was trained by an earlier run" if summary["trained_before"] else ""),
        f"[bold]Answer[/]   {answer['image']}, a {answer['truth']}: the server says [bold]{answer['label']}[/] ({answer['probability']:.0%})",
        "[bold]Seconds[/]  " + ", ".join(f"{k} {v:.0f}" for k, v in seconds.items()),
        "",
        f"Airflow run  {summary['links']['Airflow run']}",
        f"MLflow run   {summary['links']['MLflow run']}",
        f"Data report  {summary['links']['data report']}",
        f"Server       {address('server')} (API: /docs)",
        f"Summary      {path}",
    ]
    console.print()
    console.print(scores)
    console.print(Panel("\n".join(told), title="clipft demo"))
    stack.addresses()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    try:
        main(parser.parse_args().epochs)
    except ClipftError as error:
        sys.exit(f"Error: {error.line}")
