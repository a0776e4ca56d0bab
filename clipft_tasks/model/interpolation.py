"""Weights between two models of one architecture (WiSE-FT, Wortsman et al. 2022, https://arxiv.org/abs/2109.01903).

What fine-tuning gained and what it made the model forget lie on the straight line between start and fine-tuned weights, but
not in step: most of the gain often comes early on the way, most of the forgetting late.
"""

import torch

from ..core.errors import ClipftError
from .clip import SIMILARITY, Clip

State = dict[str, torch.Tensor]


def between(start: State, end: State, share: float) -> State:
    """The weights a `share` of the way from `start` (0) to `end` (1); both ends are exact.

    Everything that is a number with a fraction moves, buffers too: batch norm's statistics stand still in training, so both
    ends have the same ones and any point between them is right. The temperature moves in its logarithm. Counters and ids are
    those of `end`.

    Raises: ClipftError when the two are not of one architecture.
    """
    if wrong := [
        n for n in sorted(start.keys() | end.keys()) if n not in start or n not in end or start[n].shape != end[n].shape
    ]:
        why = f"they are not of one architecture: {', '.join(wrong[:3])}{', …' if len(wrong) > 3 else ''} differ"
        raise ClipftError(
            "the weights between start and candidate", why, "Set blend.points to 0.", code="model.other_architecture"
        )
    return {n: torch.lerp(start[n], w, share) if w.is_floating_point() else w for n, w in end.items()}


def starting_point(start: Clip, candidate: Clip) -> State:
    """The weights that `start`, prepared as for training, gave the candidate's training to begin with.

    A similarity that the start model did not have is the candidate's: there is no other that its towers could be asked with.
    """
    state = start.state()
    if not start.similarity.fitted:
        state |= candidate.similarity.state_dict(prefix=SIMILARITY)
    return state
