"""finetune: a start model and a dataset version become a candidate, in an MLflow run of its own."""

from ..contracts.stages import FinetuneResult, PlanResult, TuneResult
from ..core.console import say
from ..core.settings import settings
from ..spec import RunSpec


def run(spec: RunSpec, planned: PlanResult, tuned: TuneResult | None = None, dag_run: str = "") -> FinetuneResult:
    """Train, or resume, or find the finished run of the same work.

    Args:
        tuned: its values enter the spec, so that the run's spec.json says everything.
        dag_run: the Airflow run that asked, for lineage.
    Raises: ClipftError (spec, data, NaN, full disk); TransientError (MLflow or the data remote is away).
    """
    from .. import tracking
    from ..data import versioning
    from ..model import build
    from ..train import candidate, launch
    from ..train.plan import longest, reuse_or_make
    from ..train.recipe import work_key

    # What is logged, hashed and packed is the whole truth: run again, it gives this run.
    values = tuned.values if tuned else {}
    spec = spec.changed({**values, "tune.trials": 0, "dataset": planned.dataset, "model.start": planned.start})
    version = versioning.find(planned.dataset, spec.domain)
    clip = build.load(planned.start, domain=spec.domain)
    key = work_key(spec, version, clip.digest)
    how = (
        f"with `{spec.objective.name}` for {spec.train.epochs} epochs" if spec.train.method == "recipe" else "as few-shot says"
    )
    tags = {"clipft.domain": spec.domain, "clipft.dataset": version.tag, "clipft.revision": version.revision,
            "clipft.start": clip.source, "clipft.dag_run": dag_run,
            "mlflow.note.content": f"{clip.source}, fine-tuned on {version.tag} ({version.card.counts['train']} rows) {how} at "
                                   f"{spec.resolution.side} px."}  # fmt: skip
    with tracking.retryable():
        mlflow_run = tracking.get_or_create_run(spec.domain, key, f"{version.tag} from {clip.source}", tags)
        tracking.log_dataset(
            mlflow_run.info.run_id,
            version.tag,
            version.revision,
            version.card.content,
            version.card.counts,
            settings().datasets,
        )
    run_id = mlflow_run.info.run_id
    done = FinetuneResult(
        run_id=run_id, key=key, dataset=version.tag, done_before=True, steps=int(mlflow_run.data.metrics.get("steps", 0)),
        pairs_per_second=0.0, links={"MLflow run": tracking.run_link(mlflow_run)},
    )  # fmt: skip
    if "clipft.model_uri" in mlflow_run.data.tags:
        tracking.finish_run(run_id)
        say(f"This work was done before: run {run_id} (same spec, data and start model). Nothing to train.")
        return done

    work, rows = settings().folder("work", key), version.card.counts["train"]
    build.prepare(clip, spec)
    offered = [planned.plan]
    with tracking.retryable():
        if begun := launch.readable_plan(tracking.load_json_artifact(run_id, "plan.json"), f"of run {run_id}"):
            offered.insert(0, begun)  # another machine began this run
        if settings().upload_seconds and (got := tracking.fetch_checkpoint(run_id, work / "checkpoints")):
            say(f"Checkpoint {got.name} came from MLflow: another machine got that far.")
    texts = longest(versioning.read_manifest(version)["caption"])
    plan = reuse_or_make(spec, clip, rows, launch.plan_begun_with(work), offered, texts)
    for line in plan.lines():
        say(line)
    if rows < spec.train.batch:
        say(f"The training split has {rows} rows, fewer than train.batch = {spec.train.batch}: batches are that small.")
    job = launch.Job(
        spec=spec, plan=plan, start=planned.start, dataset=version.tag, key=key, run_id=run_id, folder=work
    )  # fmt: skip
    trained, took = candidate.train_candidate(job, clip, versioning.fetch(version), tuned)
    say(f"Candidate in run {run_id}: {trained['pairs']} pairs at {trained['pairs_per_second']:.1f}/s.")
    if took.sentence:
        say(f"The training took {took.sentence}.")
    return done.model_copy(
        update={
            "done_before": False,
            "steps": int(trained["steps"]),
            "pairs_per_second": trained["pairs_per_second"],
            "cost": took.sentence,
        }
    )
