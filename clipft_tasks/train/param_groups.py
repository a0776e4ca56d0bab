"""What trains, and how fast: ordered rules of pattern → learning rate, on top of layer decay."""

import math
from fnmatch import fnmatchcase
from typing import TypedDict

from torch import nn

from ..core.errors import ClipftError
from ..model.parameter_names import DECODER, POSITIONS, depth_of, is_head, tower_of
from ..spec import TrainSpec


def factor(name: str, rules: list[tuple[str, float]], depths: dict[str, int], decay: float) -> float:
    """What the learning rate of a parameter is multiplied with; 0 freezes it.

    Args:
        rules: (pattern, factor), first match wins; patterns as in a shell, over the parameter's whole name.
        depths: number of blocks by tower.
        decay: per block, counted from the heads.
    """
    rule = next((value for pattern, value in rules if fnmatchcase(name, pattern)), 1.0)
    if decay == 1 or is_head(name):
        return rule
    own, depth = depth_of(name), depths.get(tower_of(name), 0)
    below = depth + 1 if own is None else depth - own
    return float(rule * decay**below)


def parse(rules: list[str], model: nn.Module) -> list[tuple[str, float]]:
    """`pattern=freeze` or `pattern=0.1` -> (pattern, factor). Raises ClipftError for a rule that says nothing."""
    out = []
    names = [name for name, _ in model.named_parameters()]
    for rule in rules:
        pattern, _, value = rule.rpartition("=")
        try:
            number = 0.0 if value.strip() == "freeze" else float(value)
        except ValueError:
            number = -1.0
        if not pattern or not 0 <= number < math.inf:
            raise ClipftError(
                f"rule {rule!r}",
                "it is not pattern=freeze or pattern=number",
                "For example visual.conv1*=freeze.",
                code="train.invalid_rule",
            )
        if not any(fnmatchcase(name, pattern.strip()) for name in names):
            close = ", ".join(names[:: max(1, len(names) // 6)][:6])
            raise ClipftError(
                f"rule {rule!r}", "no parameter has such a name", f"Names are like {close}.", code="train.unmatched_rule"
            )
        out.append((pattern.strip(), number))
    return out


class ParamGroup(TypedDict):
    """A parameter group of AdamW.

    Attributes:
        factor: what the learning rate is multiplied with.
        head: whether it trains from the first step on, though heads go first.
    """

    params: list[nn.Parameter]
    factor: float
    head: bool
    weight_decay: float


def groups(model: nn.Module, spec: TrainSpec) -> list[ParamGroup]:
    """Parameter groups for AdamW.

    What is one vector (norms, biases, layer scales of any shape, the temperature), position embeddings, and what a tower of timm
    itself excepts (class tokens, the query of a pool) do not decay. Frozen parameters lose their gradient; so does a decoder, which
    would have none, or where several processes sum theirs a zero, and so only decay.
    """
    rules = parse(spec.rules, model)
    depths: dict[str, int] = {}
    for name, _ in model.named_parameters():
        if (own := depth_of(name)) is not None:
            tower = tower_of(name)
            depths[tower] = max(depths.get(tower, 0), own + 1)
    excepted = _excepted_from_decay(model)
    found: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        rate = factor(name, rules, depths, spec.layer_decay)
        parameter.requires_grad_(parameter.requires_grad and rate > 0 and not name.startswith(DECODER))
        if parameter.requires_grad:
            matrix = sum(size > 1 for size in parameter.shape) >= 2
            decays = matrix and not POSITIONS.search(name) and name not in excepted
            found.setdefault((rate, is_head(name), decays), []).append(parameter)
    if not found:
        raise ClipftError("train.rules", "they freeze everything", "Leave something to train.", code="train.nothing_to_train")
    return [
        ParamGroup(params=members, factor=rate, head=head, weight_decay=spec.weight_decay if decays else 0.0)
        for (rate, head, decays), members in found.items()
    ]


def _excepted_from_decay(model: nn.Module) -> set[str]:
    """Names of the parameters that the model's own modules say are not to decay (`no_weight_decay`, timm and open_clip)."""
    found = set()
    for path, module in model.named_modules():
        said = getattr(module, "no_weight_decay", None)
        if callable(said):
            found |= {f"{path}.{name}" if path else name for name in said()}
    return found
