"""InfoNCE against soft targets: what is nearly right counts in part."""

import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize, softmax

from ..core.errors import ClipftError
from ..spec.ranges import Range
from .base import Anchor, Objective, Pairs
from .blocks import symmetric


class SoftTarget(Objective):
    """Cross-entropy against targets that follow the similarity of what the rows say.

    Use it when some mistakes are worse than others: classes that form a tree (an ontology), or captions that say nearly the
    same in other words. A row's targets are a softmax of its similarity to all rows: 1 for the same class or caption; with a
    tree, the share of the way from the root that two classes have in common (Wu-Palmer), else the cosine between the captions
    as the frozen start model reads them.

    Args:
        tree: parent links of the classes, {child: parent}, as a mapping or as JSON. A name without a parent is a root; empty:
            similarity of captions instead.
        softness: temperature of the targets. Towards 0 only the same class or caption counts, as in `multi_positive`.
        text_weight: share of the direction in which texts look for images, 0 to 1.
    Source: MedCLIP, Wang et al. 2022, https://arxiv.org/abs/2210.10163; SoftCLIP, Gao et al. 2023,
        https://arxiv.org/abs/2303.17561; Wu and Palmer 1994, https://arxiv.org/abs/cmp-lg/9406033
    Example:
        >>> objective = SoftTarget(tree={"crack": "defect", "dark cell": "defect", "intact": "cell", "defect": "cell"})
        >>> objective.prepare(["crack", "dark cell", "intact"])
        >>> loss = objective(pairs)["contrastive_loss"]
    """

    space = {"softness": Range(0.05, 1.0, log=True), "text_weight": Range(0.25, 0.75)}

    def __init__(self, tree: str | Mapping[str, str] = "", softness: float = 0.2, text_weight: float = 0.5) -> None:
        super().__init__()
        if softness <= 0:
            raise ValueError(f"softness must be positive, not {softness}")
        self.tree = _links(tree)
        self.needs_start = not self.tree
        self.softness = softness
        self.text_weight = text_weight
        self.classes: Tensor
        self.register_buffer("classes", torch.eye(1), persistent=False)  # similarity of one to the other

    def prepare(self, classes: Sequence[str]) -> None:
        if not self.tree:
            return
        known = {*self.tree, *self.tree.values()}
        if missing := [name for name in classes if name not in known]:
            fix = f"Give each a parent; the tree names {', '.join(sorted(known)[:8])}."
            raise ClipftError(
                "option tree of soft_target",
                f"it does not hold the class {', '.join(missing[:8])}",
                fix,
                code="objective.tree_lacks_class",
            )
        if not classes:
            fix = "Leave the tree out, and captions are compared."
            raise ClipftError(
                "option tree of soft_target", "the data set has no labels to find in it", fix, code="objective.needs_labels"
            )
        ways = [_way(name, self.tree) for name in classes]
        self.classes = torch.tensor([[_wu_palmer(a, b) for b in ways] for a in ways])

    def forward(self, pairs: Pairs) -> dict[str, Tensor]:
        def rows_loss(anchor: Anchor, rows: slice) -> Tensor:
            logits = pairs.logits(anchor, rows)
            similarity = self._target_similarity(pairs, rows).to(logits.dtype).masked_fill(pairs.same("caption", rows), 1.0)
            return -(softmax(similarity / self.softness, dim=1) * log_softmax(logits, dim=1)).sum()

        return {"contrastive_loss": symmetric(pairs, rows_loss, self.text_weight)}

    def _target_similarity(self, pairs: Pairs, rows: slice) -> Tensor:
        if not self.tree:
            assert pairs.start is not None
            text = normalize(pairs.start.text, dim=-1)
            return text[rows] @ text.T
        one, other = pairs.labels[rows, None], pairs.labels[None]
        return self.classes[one.clamp_min(0), other.clamp_min(0)] * ((one >= 0) & (other >= 0))


def _links(tree: str | Mapping[str, str]) -> dict[str, str]:
    """Parent links from a mapping or JSON. Raises ValueError for what is no tree."""
    try:
        read = json.loads(tree) if isinstance(tree, str) and tree else tree or {}
    except json.JSONDecodeError as error:
        raise ValueError(f"tree is no JSON: {error}") from None
    if not isinstance(read, Mapping) or not all(isinstance(p, str) for p in read.values()):
        raise ValueError("tree is not of the form {child: parent}")
    links = dict(read)
    for name in links:
        _way(name, links)
    return links


def _way(name: str, links: Mapping[str, str]) -> list[str]:
    """The names from the root down to this one. Raises ValueError where parents go round in a circle."""
    way = [name]
    while (parent := links.get(way[-1])) is not None:
        if parent in way:
            raise ValueError(f"tree goes round in a circle at {parent!r}")
        way.append(parent)
    return way[::-1]


def _wu_palmer(one: Sequence[str], other: Sequence[str]) -> float:
    """Twice the depth of the last common name over the sum of both depths, a root having depth 1; 0 in different trees."""
    common = sum(1 for a, b in zip(one, other, strict=False) if a == b)
    return 2 * common / (len(one) + len(other))
