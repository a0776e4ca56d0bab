"""One optimisation step's gradient: the whole batch at once, or in parts that give exactly the same.

A contrastive loss needs all pairs of a batch at the same time, so ordinary accumulation changes it. Here the towers run
twice over parts: once to collect features, whose gradient is taken on the whole batch, and once more to carry that gradient
into the weights (GradCache, Gao et al. 2021, https://arxiv.org/abs/2101.06983). Memory follows the part, not the batch.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..model.clip import Clip
from ..objectives import Objective

Autocast = Callable[[], AbstractContextManager[None]]


def backward(
    clip: Clip,
    objective: Objective,
    batch: dict[str, Tensor | list[str]],
    *,
    micro_batch: int,
    seed: int,
    autocast: Autocast,
    layout: torch.memory_format = torch.contiguous_format,
    loss_scale: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> dict[str, float]:
    """Add the gradient of the batch's loss to the weights.

    Args:
        batch: `image` (n, 3, s, s) in 0-255, `texts` (unique captions), `caption` (n,) index into texts, `label` (n,).
        micro_batch: most rows per forward pass; n or more means a single pass.
        seed: random numbers of the towers (dropout), the same in both passes.
        autocast: context of the towers' arithmetic.
        layout: memory format of the pictures.
        loss_scale: a gradient scaler's `scale`.
    Returns: the loss terms, their sum as `loss`, and similarities of matched and unmatched pairs.
    """
    pictures = batch["image"]
    assert isinstance(pictures, Tensor)
    tokens = clip.tokenise(batch["texts"]).to(clip.device)  # type: ignore[arg-type]
    images = list(clip.normalise(pictures).contiguous(memory_format=layout).split(micro_batch))
    texts = list(tokens.split(micro_batch))
    encoders = [(clip.model.encode_image, part) for part in images] + [(clip.text_features, part) for part in texts]

    if len(images) == 1 and len(texts) == 1:
        features = [_encode(encode, part, seed + i, autocast) for i, (encode, part) in enumerate(encoders)]
        loss, report = _loss(clip, objective, features[:1], features[1:], batch)
        loss_scale(loss).backward()
        return report

    with torch.no_grad():
        cached = [_encode(encode, part, seed + i, autocast) for i, (encode, part) in enumerate(encoders)]
    leaves = [f.requires_grad_() for f in cached]
    loss, report = _loss(clip, objective, leaves[: len(images)], leaves[len(images) :], batch)
    loss_scale(loss).backward()  # fills the leaves' gradients, and those of scale and bias
    for i, ((encode, part), leaf) in enumerate(zip(encoders, leaves, strict=True)):
        _encode(encode, part, seed + i, autocast).backward(leaf.grad)
    return report


def _encode(encode: Callable[[Tensor], Tensor], part: Tensor, seed: int, autocast: Autocast) -> Tensor:
    torch.manual_seed(seed)  # seeds every device, so a second pass draws what the first one drew, on MPS too
    with autocast():
        return encode(part).float()


def _loss(
    clip: Clip, objective: Objective, images: Sequence[Tensor], texts: Sequence[Tensor], batch: dict[str, Tensor | list[str]]
) -> tuple[Tensor, dict[str, float]]:
    caption, label = batch["caption"], batch["label"]
    assert isinstance(caption, Tensor) and isinstance(label, Tensor)
    image = normalize(torch.cat(list(images)), dim=-1)
    text = normalize(torch.cat(list(texts)), dim=-1)[caption]  # a repeated caption was encoded once
    scale = clip.model.logit_scale.exp()
    bias = getattr(clip.model, "logit_bias", None)
    terms = objective(image=image, text=text, scale=scale, captions=caption, labels=label, bias=bias)
    loss = torch.stack(list(terms.values())).sum()
    with torch.no_grad():
        similarity = image @ text.T
        same = caption[:, None] == caption[None]
        report = {name: value.item() for name, value in terms.items()}
        report |= {"loss": loss.item(), "temperature": 1 / scale.item(), "similarity_matched": similarity[same].mean().item()}
        if not same.all():
            report["similarity_unmatched"] = similarity[~same].mean().item()
    return loss, report


def freeze_statistics(model: nn.Module) -> None:
    """Keep batch norm at its pretrained statistics: then a batch in parts equals the batch at once, and a resumed run the
    unbroken one. Its weights still train."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
