"""Where a model comes from: one string in the spec, one `Clip` out."""

import hashlib
import math
from pathlib import Path
from typing import Any

import open_clip
import torch

from ..core.errors import ClipftError
from ..core.settings import settings
from ..data.images import RESIZE_MODES
from ..domains import get_domain
from ..spec import RunSpec
from . import similarity, starter
from .clip import Clip, OpenClipConfig
from .fastpath import quicken
from .package import (
    CARD,
    WEIGHTS,
    open_folder,
    open_similarity,
    preprocessing_of,
    read_card,
    read_config,
    read_preprocessing,
    weights_digest,
)
from .resolution import set_context, set_patch, set_side

__all__ = ["from_folder", "load"]

RESIZE_MODE = {aspect: mode for mode, aspect in RESIZE_MODES.items()}


def load(start: str, *, domain: str = "", device: str | torch.device = "cpu") -> Clip:
    """The model that `model.start` names.

    Args:
        start: `starter`, `champion`, `models:/name/version`, a package folder, or `<open_clip name>:<tag or file>`.
        domain: what the model is asked about, and whose champion for `champion`. A package of that domain reads images and
            words classes as it says itself; any other model as the domain says.
        device: where to put it.
    Raises:
        ClipftError: unknown name or tag, or weights that cannot be had, with what would help.
    """
    folder, source = _folder(start, domain)
    clip = from_folder(folder, source=source) if folder else _from_open_clip(start)
    packed_for = read_card(folder).domain if folder and (folder / CARD).exists() else ""
    if domain and packed_for != domain:
        clip.preprocessing = preprocessing_of(get_domain(domain))
    return clip.to(device)


def prepare(clip: Clip, spec: RunSpec) -> Clip:
    """Change a start model to what a run asks for: patch, text length, image side, similarity, the domain's preprocessing.

    Raises ClipftError when it cannot be.
    """
    if spec.model.patch:
        set_patch(clip, spec.model.patch)
    if spec.model.context:
        set_context(clip, spec.model.context)
    if spec.objective.similarity != clip.similarity.name:
        clip.similarity = similarity.make(spec.objective.similarity, clip.embed_dim).to(clip.device)
    if spec.objective.temperature:
        clip.model.logit_scale.data.fill_(-math.log(spec.objective.temperature))
    clip.config["preprocess_cfg"] |= {"resize_mode": RESIZE_MODE[spec.resolution.aspect]}
    clip.preprocessing = preprocessing_of(get_domain(spec.domain))
    return set_side(clip, spec.resolution.train)


def tokenizer(start: str, *, domain: str = "") -> tuple[Any, int]:
    """The tokenizer of the model that `start` names, without its weights, and its context length."""
    folder, _ = _folder(start, domain)
    if not folder and start.partition(":")[0] not in open_clip.list_models():
        raise _unknown(start)
    found = open_clip.get_tokenizer(f"local-dir:{folder}" if folder else start.partition(":")[0])
    return found, int(found.context_length)


def _folder(start: str, domain: str) -> tuple[Path | None, str]:
    """The package folder that `start` names, fetched when needed, and what to call it; None for an open_clip name."""
    if start == "starter":
        return starter.build(), start
    if start == "champion" or start.startswith("models:/"):
        from .. import tracking

        version = tracking.champion(domain) if start == "champion" else tracking.resolve_version(start)
        if version is None:
            raise ClipftError(
                f"the champion of {domain}",
                "no model version carries that alias yet",
                "Start from `starter` first.",
                code="model.no_champion",
            )
        return tracking.fetch_package(version), f"models:/{version.name}/{version.version}"
    folder = Path(start).expanduser()
    return (folder.resolve(), start) if (folder / WEIGHTS).exists() else (None, start)


def from_folder(folder: Path, *, source: str) -> Clip:
    """The model of a package, or of a folder with weights and configuration alone: that is of no domain yet.

    Raises: ClipftError where it cannot be opened.
    """
    model, tokenizer = open_folder(folder)
    quicken(model)
    clip = Clip(model, tokenizer, read_config(folder), source, weights_digest(folder / WEIGHTS), folder)
    clip.similarity = open_similarity(folder, clip.embed_dim)
    clip.preprocessing = read_preprocessing(folder) if (folder / CARD).exists() else None
    return clip


def _unknown(start: str) -> ClipftError:
    return ClipftError(
        f"start model {start!r}",
        "it is neither starter, champion, models:/…, a model package folder nor an open_clip model",
        "Write an open_clip name and tag, for example ViT-B-32:openai.",
        code="model.unknown_start",
    )


def _from_open_clip(start: str) -> Clip:
    name, _, tag = start.partition(":")
    if name not in open_clip.list_models():
        raise _unknown(start)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag and tag not in tags and not Path(tag).expanduser().is_file():
        raise ClipftError(
            f"start model {start!r}",
            f"{name} has no pretrained tag {tag!r}",
            f"Known: {', '.join(tags)}.",
            code="model.unknown_tag",
        )
    try:
        model = open_clip.create_model(name, pretrained=tag or None, cache_dir=str(settings().folder("cache", "open_clip")))
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # open_clip wraps hub, network and file errors in many types
        raise ClipftError(
            f"start model {start!r}",
            f"its weights or tokenizer cannot be had: {str(error).splitlines()[0]}",
            "Is this machine offline? Fetch them once where it is not, or give the path of a checkpoint after the colon.",
            code="model.not_available",
        ) from error
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    config: OpenClipConfig = {
        "model_cfg": open_clip.get_model_config(name) or {},
        "preprocess_cfg": open_clip.get_model_preprocess_cfg(model),
    }
    return Clip(quicken(model).eval(), tokenizer, config, start, digest.hexdigest())
