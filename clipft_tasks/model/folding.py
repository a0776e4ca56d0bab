"""Batch norms folded into the convolutions before them: the same tower in fewer steps, for inference alone."""

import copy

import numpy as np
import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..core.decision import Decision
from .clip import Clip
from .image_tower import OpenClipModule

COSINE = 0.9999  # least one of an embedding with that before


class _Tracer(fx.Tracer):
    """Sees which modules follow each other, and nothing of what is inside of those that may be folded."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d | _BatchNorm) or super().is_leaf_module(m, module_qualified_name)


def fold_batch_norms(clip: Clip, images: np.ndarray) -> Decision[int]:
    """Fold the batch norms of a model's image tower, in place; the number that was folded, and why no more.

    The model is for inference from then on: its weights are no longer those of its package, nor are their names all.

    Args:
        images: uint8 (n, 3, s, s), on which the tower must give what it gave.
    """
    norms = [m for m in clip.model.visual.modules() if isinstance(m, _BatchNorm)]
    if not norms:
        return Decision(0, "the image tower has no batch norm")
    try:
        folded, count = _folded(clip.model.visual)
    except Exception as error:  # a tower whose steps depend on its input cannot be followed
        return Decision(0, f"the image tower cannot be followed ({str(error).splitlines()[0][:100]})")
    before, shown = clip.model.visual, torch.from_numpy(images)
    with torch.inference_mode():
        expected = clip.image_features(clip.normalize(shown)).float()
        clip.model.visual = folded
        cosine = float(torch.cosine_similarity(clip.image_features(clip.normalize(shown)).float(), expected).min())
    if not cosine >= COSINE:
        clip.model.visual = before
        return Decision(0, f"the tower would give other answers (cosine {cosine:.5f})")
    clip.__dict__.pop("tower", None)
    return Decision(count, f"{count} of {len(norms)} batch norms follow a convolution directly")


def _folded(visual: OpenClipModule) -> tuple[nn.Module, int]:
    """A copy with its batch norms folded, and how many were."""
    copied = copy.deepcopy(visual).eval()
    graph, modules, count = _Tracer().trace(copied), dict(copied.named_modules()), 0
    called = [node.target for node in graph.nodes if node.op == "call_module"]
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        norm, conv = modules[str(node.target)], modules[str(before.target)]
        once = called.count(node.target) == called.count(before.target) == 1
        if (
            once
            and isinstance(norm, _BatchNorm)
            and isinstance(conv, nn.Conv2d)
            and norm.running_mean is not None
            and norm.running_var is not None
        ):
            conv.weight, bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            conv.bias = bias
            # timm's norms hold what follows them: a dropout that is off, and the activation.
            parts = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
            copied.set_submodule(str(node.target), nn.Sequential(*parts) if parts else nn.Identity())
            count += 1
    return copied, count
