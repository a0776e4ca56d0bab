"""Where a model comes from: one string in the spec, one `Clip` out."""

import hashlib
import math
import warnings
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import get_pretrained_cfg

from ..core.console import say
from ..core.errors import ClipftError
from ..core.settings import settings
from ..data.images import RESIZE_MODES
from ..domains import get_domain
from ..spec import RunSpec
from . import similarity, starter
from .adapter_folder import ADAPTER, Adapter, digest_of
from .clip import Clip, OpenClipConfig, Tokenizer
from .fastpath import quicken
from .package import (
    CARD,
    CONFIG,
    TOKENIZER_FILES,
    WEIGHTS,
    open_folder,
    open_similarity,
    preprocessing_of,
    read_card,
    read_config,
    read_learned,
    read_preprocessing,
    weights_digest,
)
from .resolution import set_context, set_patch, set_side

__all__ = ["from_folder", "load"]

HUB = "hf-hub:"
FILES = ["open_clip_config.json", "open_clip_model.safetensors", *TOKENIZER_FILES]

RESIZE_MODE = {aspect: mode for mode, aspect in RESIZE_MODES.items()}


def load(start: str, *, domain: str = "", device: str | torch.device = "cpu") -> Clip:
    """The model that `model.start` names.

    Args:
        start: `starter`, `champion`, `models:/name/version`, a package folder, that of an adapter, or another one with open_clip's configuration and
            weights, `hf-hub:<owner>/<name>` for such a repository, or `<open_clip name>:<tag or file>`.
        domain: what the model is asked about, and whose champion for `champion`. A package of that domain reads images and
            words classes as it says itself; any other model as the domain says.
        device: where to put it.
    Raises:
        ClipftError: unknown name or tag, or weights that cannot be had, with what would help.
    """
    folder, source = _folder(start, domain)
    if not folder:
        clip = _from_open_clip(start)
    elif (folder / ADAPTER).exists():
        clip = from_adapter(folder, source=source)
    else:
        clip = from_folder(folder, source=source)
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
    clip.preprocessing, clip.learned = preprocessing_of(get_domain(spec.domain)), {}  # a training begins with the prompts
    return set_side(clip, spec.resolution.side)


def tokenizer(start: str, *, domain: str = "") -> tuple[Tokenizer, int]:
    """The tokenizer of the model that `start` names, without its weights, and its context length."""
    folder, _ = _folder(start, domain)
    if folder and (folder / ADAPTER).exists():
        return tokenizer(Adapter.read(folder).card.base, domain=domain)
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
    if start.startswith(HUB):
        return _from_hub(start), start
    folder = Path(start).expanduser()
    known = (folder / WEIGHTS).exists() or (folder / ADAPTER).exists()
    return (folder.resolve(), start) if known else (None, start)


def _from_hub(start: str) -> Path:
    """The folder of a repository on the Hugging Face hub, fetched when needed. Raises ClipftError where it cannot be had."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                start.removeprefix(HUB), allow_patterns=FILES, cache_dir=str(settings().folder("cache", "open_clip"))
            )
        )
    except Exception as error:  # the hub's client wraps network, name and permission errors in many types
        raise _absent(start, error) from error
    if not ((folder / WEIGHTS).exists() and (folder / CONFIG).exists()):
        why = f"the repository has no {CONFIG} with {WEIGHTS}"
        raise ClipftError(f"start model {start!r}", why, "Use one that is marked open_clip.", code="model.not_open_clip")
    return folder


def from_folder(folder: Path, *, source: str) -> Clip:
    """The model of a package, or of a folder with weights and configuration alone: that is of no domain yet.

    Raises: ClipftError where it cannot be opened.
    """
    model, tokenizer = open_folder(folder)
    quicken(model)
    clip = Clip(model, tokenizer, read_config(folder), source, weights_digest(folder / WEIGHTS), folder)
    clip.similarity = open_similarity(folder, clip.embed_dim)
    if (folder / CARD).exists():
        clip.preprocessing, clip.learned = read_preprocessing(folder), read_learned(folder)
        if clip.tower.keeps_grid:
            clip.made_for = read_card(folder).resolutions.serve
    return clip


def from_adapter(folder: Path, *, source: str) -> Clip:
    """The model that an adapter and its base make, merged: an ordinary one.

    Raises: ClipftError where the base cannot be had or is another one now, or the adapter cannot be read.
    """
    adapter, card = Adapter.read(folder), read_card(folder)
    clip = load(adapter.card.base, domain=card.domain)
    if clip.digest != adapter.card.digest:
        why = f"its base {adapter.card.base} has other weights now (digest {clip.digest[:12]}, not {adapter.card.digest[:12]})"
        raise ClipftError(
            f"adapter {folder}", why, "Name the base by a version or a file that stays.", code="adapter.other_base"
        )
    prepare(clip, RunSpec.model_validate(card.spec))
    adapter.merge_into(clip)
    clip.source, clip.digest, clip.preprocessing = source, digest_of(clip.digest, folder), read_preprocessing(folder)
    return clip


def _absent(start: str, error: Exception) -> ClipftError:
    return ClipftError(
        f"start model {start!r}",
        f"its weights or tokenizer cannot be had: {(str(error).splitlines() or [type(error).__name__])[0]}",
        "Is this machine offline? Fetch them once where it is not, or give the path of a checkpoint after the colon.",
        code="model.not_available",
    )


def _unknown(start: str) -> ClipftError:
    return ClipftError(
        f"start model {start!r}",
        "it is neither starter, champion, models:/…, the folder of a model package or adapter, nor an open_clip model",
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
    config: dict[str, Any] = open_clip.get_model_config(name) or {}
    named_for = bool(config.get("quick_gelu"))  # then the name says it, and a tag may leave it out
    if tag in tags:
        config |= _as_trained(name, tag)
    elif tag:
        say(
            f"{tag} does not say which activation it was trained with: it is taken to be that of {name} (others: {name}-quickgelu)."
        )
    else:
        say(f"Warning: {start} names no weights, so they are random. Pretrained ones: {', '.join(tags) or 'none'}.")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", category=UserWarning, module="open_clip")  # it warns where results would be wrong
            if named_for:
                warnings.filterwarnings("ignore", message="QuickGELU mismatch")
            model = open_clip.create_model(
                name,
                pretrained=tag or None,
                force_quick_gelu=config.get("quick_gelu", False),
                cache_dir=str(settings().folder("cache", "open_clip")),
            )
        tokenizer = open_clip.get_tokenizer(name)
    except UserWarning as warning:
        fix = "Choose another tag or name; with these two the model would compute something else than it was trained for."
        raise ClipftError(f"start model {start!r}", str(warning), fix, code="model.mismatch") from warning
    except Exception as error:  # open_clip wraps hub, network and file errors in many types
        raise _absent(start, error) from error
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    # What a model computes goes with its weights: the same ones behind another activation are another start model.
    digest.update(b"quick_gelu" if config.get("quick_gelu") else b"")
    kept: OpenClipConfig = {"model_cfg": config, "preprocess_cfg": open_clip.get_model_preprocess_cfg(model)}
    return Clip(quicken(model).eval(), tokenizer, kept, start, digest.hexdigest())


def _as_trained(name: str, tag: str) -> dict[str, Any]:
    """What a pretrained tag says of the architecture that the configuration of its name does not."""
    return {"quick_gelu": True} if get_pretrained_cfg(name, tag).get("quick_gelu") else {}
