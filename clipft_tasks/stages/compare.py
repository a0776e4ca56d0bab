"""compare: any set of runs, versions or domains alongside one another, in one page."""

from collections.abc import Sequence

from ..contracts.stages import CompareResult
from ..core.console import say
from ..spec import RunSpec


def run(
    spec: RunSpec,
    models: Sequence[str],
    *,
    sizes: Sequence[int] = (),
    dataset: str = "",
    metric: str = "",
    unpaired: bool = False,
    watts: float | None = None,
) -> CompareResult:
    """Score the models on their test rows, test their differences, and log page and JSON to the experiment clipft-compare.

    Args:
        spec: its evaluation (`evaluate.*`) and device (`memory.device`) are used.
        models: domains (champion and challenger), `domain@alias`, `models:/name/version`, MLflow run ids.
        sizes: image sizes; empty: all that every model of a domain was evaluated at.
        dataset: whose test rows: of one version (`industrial/v2`), of the `newest` that a model was trained on, or empty: each
            model's own.
        metric: the metric that is tested; empty: the `gate.metric` of each domain.
        unpaired: go on where models of a domain have different test rows, without a test between them.
        watts: power of the training device, for the energy estimate; None: its own meter, or an assumption by its kind.
    Raises: ClipftError: a name that is no model, a model that is not there, or test rows that differ.
    """
    from ..evaluate import compare, compare_models, compare_page
    from ..model.layout import prepare_for_inference

    members = compare_models.members(compare_models.resolve(models), dataset)
    if not unpaired:
        compare_models.refuse_different_rows(members)
    questions = compare_models.questions(members, metric)
    compare_models.predict(members, sizes, spec.evaluate.batch, lambda clip: prepare_for_inference(clip, spec.memory.device))
    problems = compare_models.add_run_facts(members)
    resamples = spec.evaluate.bootstrap
    found = compare.compare(members, questions, resamples=resamples, watts=watts, problems=problems)
    page = compare_page.page(found, compare_models.changed_images(members, found))
    key = compare.identity(members, questions, resamples=resamples, watts=watts)
    link, run_id = compare_models.save(key, members, found, page)
    for line in (*found.summary, *found.problems):
        say(line)
    names = [model.name for model in members]
    return CompareResult(
        run_id=run_id, names=names, summary=found.summary, tests=found.tests, problems=problems, links={"Comparison": link}
    )
