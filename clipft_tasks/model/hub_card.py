"""A package's README: its card for people, in the form of the Hugging Face hub (YAML that the hub's own library reads, then text)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from huggingface_hub import EvalResult, ModelCardData

from ..contracts.model_card import ModelCard

README = "README.md"
SHOWN_CLASSES = 20
HUB_ID = re.compile(r"hf-hub:([\w.-]+/[\w.-]+)")


@dataclass(frozen=True)
class Score:
    """A metric of the model on its own test rows at one image size (pixels)."""

    metric: str
    value: float
    size: int


def readme(card: ModelCard, name: str, scores: Sequence[Score] = (), server: str = "http://127.0.0.1:8800") -> str:
    """The whole file.

    Args:
        name: of the model, as it is registered.
        scores: of its evaluation; a package is written before there is one.
        server: address of a server that the examples ask.
    """
    return f"---\n{_data(card, name, scores).to_yaml()}\n---\n\n{_text(card, name, scores, server)}"


def how_to_ask(domain: str, server: str) -> str:
    """Lines to copy, for a shell and for Python: what does the model say of an image?"""
    return f"""\
```bash
curl -sf {server}/v1/classify -F domain={domain} -F image=@new.jpg
```

```python
from pathlib import Path
from clipft_tasks.client import Client

with Client("{server}", domain="{domain}") as client:
    [answer] = client.classify([Path("new.jpg")])
print(answer.prediction.label, answer.prediction.probability, answer.version)
```
"""


def _data(card: ModelCard, name: str, scores: Sequence[Score]) -> ModelCardData:
    base = HUB_ID.match(card.start)
    return ModelCardData(
        model_name=name if scores else None,
        library_name="open_clip",
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "clipft", card.domain],
        base_model=base[1] if base else None,
        # Nobody has said what these weights may be used for; what is known is the license of the data.
        license="other" if card.license else "unknown",
        license_name="see-the-license-of-the-data" if card.license else None,
        metrics=sorted({score.metric for score in scores}) or None,
        eval_results=[
            EvalResult(
                task_type="zero-shot-image-classification",
                dataset_type="clipft",
                dataset_name=card.dataset,
                dataset_split="test",
                dataset_revision=card.revision,
                metric_type=score.metric,
                metric_name=f"{score.metric.replace('_', ' ')} at {score.size} px",
                metric_value=round(score.value, 4),
            )
            for score in scores
        ]
        or None,
    )


def _text(card: ModelCard, name: str, scores: Sequence[Score], server: str) -> str:
    shown = ", ".join(card.classes[:SHOWN_CLASSES])
    more = f" and {len(card.classes) - SHOWN_CLASSES} more" if len(card.classes) > SHOWN_CLASSES else ""
    rows = [f"| {score.metric} | {score.size} px | {score.value:.3f} |" for score in scores]
    table = ["| metric | image size | value |", "|---|---|---|", *rows] if rows else ["None yet: the package came before."]
    parts = [
        f"# {name}",
        f"A CLIP model of the domain {card.domain}: {card.start}, fine-tuned by clipft on {card.dataset}.",
        "## What it is for",
        f"Images like those of {card.dataset}, {card.resolutions.serve} px a side"
        + (f", of these classes: {shown}{more}." if shown else ", and texts about them.")
        + " What it says of other images was not looked at; a server reports when what it sees has drifted away.",
        "## How to ask it",
        how_to_ask(card.domain, server).rstrip(),
        'By hand: `open_clip.create_model_and_transforms("local-dir:<this folder>")`.',
        "## Evaluation",
        f"On test rows of {card.dataset} that no training saw:",
        "\n".join(table),
        "## Where it comes from",
        "\n".join(
            [
                f"- data: {card.dataset}, revision `{card.revision}`; its license: {card.license or 'not stated'}",
                f"- start model: {card.start}, whose license counts too",
                f"- objective: {card.objective.get('name', '')}; similarity: {card.similarity}",
                f"- MLflow run `{card.run_id}`, work `{card.key}`",
            ]
        ),
    ]
    return "\n\n".join(parts) + "\n"
