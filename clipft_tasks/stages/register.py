"""register: the candidate becomes a model version, with everything that one asks about it later, and the challenger."""

import json

from ..contracts.evaluation import Role
from ..contracts.gate import GateVerdict
from ..contracts.stages import RegisterResult
from ..core.console import say
from ..core.settings import settings
from ..spec import RunSpec


def run(spec: RunSpec, run_id: str, gate: GateVerdict) -> RegisterResult:
    """Register the run's model once, whatever happens in between."""
    from .. import tracking
    from ..model.hub_card import README, Score, how_to_ask, readme
    from ..model.package import read_card

    client = tracking.client()
    package = tracking.fetch_candidate(run_id)
    card = read_card(package)
    run_tags = client.get_run(run_id).data.tags
    names: dict[str, Role] = {"score": "candidate", "start_score": "start"}  # a verdict of before may lack the start model's
    scores = {
        f"clipft.{name}.{size}": f"{models[role].value:.4f}"
        for name, role in names.items()
        for size, models in gate.scores.items()
        if role in models
    }
    tags = {
        "clipft.key": card.key,
        "clipft.domain": card.domain,
        "clipft.dataset": card.dataset,
        "clipft.revision": card.revision,
        "clipft.modalities": "image,text",
        "clipft.resolutions": json.dumps(card.resolutions.to_json()),
        "clipft.tokenizer": json.dumps(card.tokenizer.to_json()),
        "clipft.embed_dim": str(card.embed_dim),
        "clipft.objective": json.dumps(card.objective),
        "clipft.start": card.start,
        "clipft.metric": gate.metric,
        "clipft.dag_run": run_tags.get("clipft.dag_run", ""),
        "clipft.cost": run_tags.get("clipft.cost", ""),
        **scores,
    }
    server, name = settings().server_ui or settings().server_url, tracking.model_name(spec.domain)
    description = (
        f"Fine-tuned on {card.dataset} from {card.start}.\n\n{how_to_ask(spec.domain, server)}\n{gate.table}\n\n"
        f"Classes: {', '.join(card.classes) or 'none'}. Data license: {card.license or 'not stated'}."
    )
    page = readme(
        card, name, [Score(gate.metric, of["candidate"].value, size) for size, of in sorted(gate.scores.items())], server
    )
    with tracking.retryable():
        client.log_text(run_id, page, README)  # with what the package, made before the evaluation, cannot say
        version, new = tracking.register(
            spec.domain, run_id, tags, description[:5000], tracking.digests(package)
        )  # what the registry holds
    say(f"{version.name} version {version.version}" + (" registered as challenger." if new else " was registered before."))
    link = tracking.version_link(version)
    return RegisterResult(model=version.name, version=str(version.version), new=new, links={"Model version": link})
