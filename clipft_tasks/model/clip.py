"""One model with its tokenizer and preprocessing: what training, evaluation and the server all hold."""

import threading
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

import numpy as np
import open_clip
import torch

from ..contracts.preprocessing import Preprocessing
from ..core.console import say
from ..core.errors import ClipftError
from ..data.images import RESIZE_MODES, Aspect, DecodedImage, Limits, open_image
from ..devices import backend
from ..devices.memory import is_out_of_memory
from ..domains import spoken
from .image_tower import ImageTower, OpenClipModule, image_tower
from .similarity import Cosine, Similarity

if TYPE_CHECKING:
    from .adapter_folder import Adapter

__all__ = ["Clip"]

# A tower: uint8 images (n, 3, s, s), or token ids (n, length), int64 -> embeddings (n, embed_dim), fp32, not normalized.
Runner: TypeAlias = Callable[[np.ndarray], np.ndarray]
Tokenizer: TypeAlias = Any  # open_clip's own and those of transformers share no class

SIMILARITY = "similarity."  # before the names of its weights
# Text lengths come from a small set, since every new shape costs memory on MPS and a compilation on CUDA.
TEXT_LENGTHS = (8, 16, 24, 32, 48, 64, 77, 128, 256, 512)
COUNTED_AT = (64, 512, 4096)  # lengths to which texts are padded while their tokens are counted
TOKENS_AT_ONCE = 32_768  # of them, padding included
_tokenizing = threading.Lock()  # those of transformers are set to a length at each call, so they are for one thread at a time


class OpenClipConfig(TypedDict):
    """open_clip's own configuration of a model, as its files hold it; which keys there are differs from tower to tower."""

    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]


class _Method(torch.nn.Module):
    """A model's method as a module, so that other tensors may stand in for its weights while it runs."""

    def __init__(self, model: OpenClipModule, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = getattr(self.model, self.name)(inputs, normalize=False)
        return features

    def with_tensors(self, standing_in: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        """Run it with tensors in place of weights or buffers of the model, by name. Gradients flow through them."""
        if not standing_in:
            return self.forward(inputs)
        named = {f"model.{name}": tensor for name, tensor in standing_in.items()}
        features: torch.Tensor = torch.func.functional_call(self, named, (inputs,))
        return features


def _on_tensors(run: Runner) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda inputs: torch.from_numpy(run(np.ascontiguousarray(inputs.numpy())))


def padding(tokenizer: Tokenizer) -> int:
    """The token id that fills a tokenizer's rows: that of a transformers tokenizer, 0 for open_clip's own."""
    found = getattr(getattr(tokenizer, "tokenizer", None), "pad_token_id", None)
    return 0 if found is None else int(found)


def lengths(tokens: torch.Tensor, pad: int) -> torch.Tensor:
    """Tokens of each row (n, length) up to its last one that is not padding: (n,).

    Args:
        pad: the token id of padding.
    """
    positions = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    return ((tokens != pad) * positions).amax(dim=1)


def by_length(encode: Callable[[torch.Tensor], torch.Tensor], tokens: torch.Tensor, pad: int) -> torch.Tensor:
    """What `encode` gives for token ids (n, length), rows of about one length at a time, each cut to it: (n, width).

    A CPU's time goes with the tokens, and one long text would make all others of its batch as long.

    Args:
        pad: the token id of padding.
    """
    edges = torch.tensor([b for b in TEXT_LENGTHS if b < tokens.shape[1]] + [tokens.shape[1]], device=tokens.device)
    bucket = torch.searchsorted(edges, lengths(tokens, pad))
    if len(tokens) < 2 or bool((bucket == bucket[0]).all()):
        return encode(tokens[:, : int(edges[bucket[0]])] if len(tokens) else tokens)
    order = torch.argsort(bucket, stable=True)
    present, counts = torch.unique_consecutive(bucket[order], return_counts=True)
    parts = zip(order.split(counts.tolist()), edges[present].tolist(), strict=True)
    return torch.cat([encode(tokens[rows, :length]) for rows, length in parts])[torch.argsort(order)]


def token_counts(tokenizer: Tokenizer, texts: Sequence[str], at: Sequence[int] = COUNTED_AT) -> list[int]:
    """Tokens that each text needs, counted up to 4,096: a count above the context length shows what a model would not see.

    Tokenizers pad every text of a call to the length that is asked for, so texts are counted at a short one first, and only
    those that fill it at a longer one.

    Args:
        at: these lengths; nothing is counted beyond the last.
    """
    counts = torch.zeros(len(texts), dtype=torch.long)
    waiting = torch.arange(len(texts))
    for context in at:
        if not len(waiting):
            break
        with _tokenizing:
            empty = tokenizer([""], context_length=context)  # whichever number a tokenizer pads with, and wherever
        for some in waiting.split(TOKENS_AT_ONCE // context):
            with _tokenizing:
                tokens = tokenizer([texts[i] for i in some.tolist()], context_length=context)
            counts[some] = lengths(tokens - empty, 0)
        waiting = waiting[counts[waiting] >= context - 1]
    return counts.tolist()


@dataclass
class Clip:
    """An open_clip model and everything needed to feed it.

    Args:
        model: the open_clip model, on its device.
        tokenizer: texts to token ids, as open_clip made it.
        config: open_clip's `model_cfg` and `preprocess_cfg`.
        source: where the model came from, as a person would name it.
        digest: sha256 of its weights.
        folder: the package or starter folder, when there is one (tokenizer files are copied from it).
        similarity: how its embeddings are compared.
        preprocessing: how images are read and classes are worded: its package's, or those of the domain that it was prepared
            for; None where it is of no domain yet.
        made_for: side of the images that it is for, where its configuration says another: that of a grid that it keeps.
        adapter: what a training with low-rank updates made of its start model, merged by now.
        learned: embeddings (d,) of classes that were fitted to a few images, by name; they stand in place of what the prompts give.
        image_runners: what runs the image tower in place of torch in `encode_images`, by side, see `backends`.
        text_runner: likewise the text tower in `encode_texts`.
    """

    model: OpenClipModule
    tokenizer: Tokenizer
    config: OpenClipConfig
    source: str
    digest: str
    folder: Path | None = None
    similarity: Similarity = None  # type: ignore[assignment]  # cosine, when nothing is given
    preprocessing: Preprocessing | None = None
    made_for: int | None = None
    adapter: "Adapter | None" = None
    learned: dict[str, torch.Tensor] = field(default_factory=dict)
    image_runners: dict[int, Runner] = field(default_factory=dict)
    text_runner: Runner | None = None

    def __post_init__(self) -> None:
        self.similarity = self.similarity or Cosine(self.embed_dim)
        preprocess = self.config["preprocess_cfg"]
        self._mean = torch.tensor(preprocess["mean"]).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(preprocess["std"]).view(1, 3, 1, 1) * 255

    @property
    def device(self) -> torch.device:
        first: torch.nn.Parameter = next(self.model.parameters())
        return first.device

    @property
    def embed_dim(self) -> int:
        return int(self.config["model_cfg"]["embed_dim"])

    @property
    def side(self) -> int:
        """Image side that it is for."""
        if self.made_for:
            return self.made_for
        size = self.config["model_cfg"]["vision_cfg"].get("image_size", 224)
        return int(size[0] if isinstance(size, list | tuple) else size)

    @cached_property
    def tower(self) -> ImageTower:
        """What kind of image tower it has."""
        return image_tower(self.model)

    @cached_property
    def _image(self) -> _Method:
        return _Method(self.model, "encode_image")

    @cached_property
    def _text(self) -> _Method:
        return _Method(self.model, "encode_text")

    @cached_property
    def pad(self) -> int:
        """The token id of padding."""
        return padding(self.tokenizer)

    @property
    def aspect(self) -> Aspect:
        """How images that are not square become square."""
        return RESIZE_MODES.get(self.config["preprocess_cfg"].get("resize_mode", "shortest"), "crop")

    def prepared(self) -> Preprocessing:
        """How images are read and classes are worded. Raises ClipftError where the model is of no domain yet."""
        if self.preprocessing is None:
            why = "it is of no domain, so how its images are read and its classes are worded is not known"
            raise ClipftError(
                f"the model {self.source}", why, "Load it for a domain, or open a model package.", code="model.no_domain"
            )
        return self.preprocessing

    def open_image(self, data: bytes, limits: Limits = Limits()) -> DecodedImage:
        """An image file's bytes as this model wants them decoded: its package's rule, never the reading process's.

        Raises: BadImageError; ClipftError where the model is of no domain yet.
        """
        return open_image(data, limits, gray_bits=self.prepared().gray_bits)

    @property
    def context_length(self) -> int:
        return int(self.tokenizer.context_length)

    def to(self, device: torch.device | str) -> "Clip":
        self.model.to(device)
        self.similarity.to(device)
        return self

    def state(self, names: Container[str] | None = None) -> dict[str, torch.Tensor]:
        """All weights, or some: the model's by their names, the similarity's with `similarity.` before theirs."""
        own: dict[str, torch.Tensor] = self.model.state_dict()
        every = own | self.similarity.state_dict(prefix=SIMILARITY)
        return every if names is None else {name: value for name, value in every.items() if name in names}

    def load_state(self, state: Mapping[str, torch.Tensor], *, some: bool = False) -> None:
        """What `state` gave.

        Args:
            some: it may hold some of the weights; the others stay.
        Raises: RuntimeError for names that the model does not have, or lacks.
        """
        every = {**self.state(), **state} if some else state
        own = {k.removeprefix(SIMILARITY): v for k, v in every.items() if k.startswith(SIMILARITY)}
        self.similarity.load_state_dict(own)
        self.model.load_state_dict({k: v for k, v in every.items() if not k.startswith(SIMILARITY)})

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 or 0-255 float images (n, 3, h, w) on any device -> the model's input range, fp32, on its device."""
        images = images.to(self.device, torch.float32)
        if self._mean.device != images.device:  # moved once: copied at each call, the host would wait for the device
            self._mean, self._std = self._mean.to(images.device), self._std.to(images.device)
        return (images - self._mean) / self._std

    def tokenize(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids (n, length), int64, cut to the longest text of the list and rounded up to a bucket.

        Exact: causal text towers pool at the end token and masked ones ignore padding, so the cut columns change nothing.
        """
        tokens, lengths = self.token_table(texts)
        return tokens[:, : int(lengths.max())].long() if len(texts) else tokens.long()

    def token_table(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids of each text (n, context), int32, and how many columns it needs (n,), rounded up to a bucket.

        Towers of fixed length (SigLIP pools over padding, prefix towers add a token) need their full context.
        """
        if not texts:
            return torch.zeros((0, self.context_length), dtype=torch.int32), torch.zeros(0, dtype=torch.int64)
        parts = []
        for start in range(0, len(texts), 4096):
            with _tokenizing:
                parts.append(self.tokenizer(list(texts[start : start + 4096])))
        tokens = torch.cat(parts)
        if not self.takes_any_length:
            return tokens.int(), torch.full((len(tokens),), tokens.shape[1])
        buckets = torch.tensor([b for b in TEXT_LENGTHS if b < tokens.shape[1]] + [tokens.shape[1]])
        return tokens.int(), buckets[torch.searchsorted(buckets, lengths(tokens, self.pad))]

    @property
    def takes_any_length(self) -> bool:
        """Whether texts may be cut to their own length without changing anything."""
        text = self.config["model_cfg"]["text_cfg"]
        if "hf_model_name" in text:
            return text.get("hf_pooler_type") in ("mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler")
        if type(self.model) not in (open_clip.CLIP, open_clip.CustomTextCLIP):
            return False
        return not text.get("no_causal_mask") and text.get("pool_type", "argmax") == "argmax" and not text.get("embed_cls")

    def pays_by_length(self, tokens: torch.Tensor) -> bool:
        """Whether texts (n, length) should be encoded `by_length`: not where each new shape costs more than it saves."""
        return not backend(tokens.device).fixed_shapes and self.takes_any_length

    def text_features(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids (n, length), cut or not -> text embeddings (n, embed_dim), not normalized.

        open_clip's own text towers hold positions and a mask of the full context, so a cut batch is given cut ones;
        gradients flow into the full weights as they should.
        """
        length = tokens.shape[1]
        if "hf_model_name" in self.config["model_cfg"]["text_cfg"] or length == self.context_length:
            return self._text.with_tensors({}, tokens)
        prefix = "" if type(self.model) is open_clip.CLIP else "text."
        tower = self.model if type(self.model) is open_clip.CLIP else self.model.text
        cut = {prefix + "positional_embedding": tower.positional_embedding[:length]}
        if tower.attn_mask is not None:
            cut[prefix + "attn_mask"] = tower.attn_mask[:length, :length]
        return self._text.with_tensors(cut, tokens)

    def image_features(self, images: torch.Tensor) -> torch.Tensor:
        """Normalized images (n, 3, s, s), of any side that the tower can take -> image embeddings, not normalized.

        Raises: ClipftError for a side that it cannot take.
        """
        standing_in = {f"visual.{name}": tensor for name, tensor in self.tower.at(images.shape[-1]).items()}
        return self._image.with_tensors(standing_in, images)

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 images (n, 3, s, s) -> embeddings (n, embed_dim), fp32, as the similarity compares them.

        Where memory runs short, in halves. Raises ClipftError when a single image does not fit.
        """

        def encode(some: torch.Tensor) -> torch.Tensor:
            if (run := self.image_runners.get(some.shape[-1])) is not None:
                return self.similarity.embed_image(_on_tensors(run)(some))
            return self.similarity.embed_image(self.image_features(self.normalize(some)).float())

        return self._halving(encode, images, f"images of {images.shape[-1]} px")

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts -> embeddings (n, embed_dim), fp32, as the similarity compares them. Memory as for images."""
        return self.encode_tokens(self.tokenize(texts))

    def encode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids (n, length), int64, as `tokenize` gives them -> embeddings (n, embed_dim), as `encode_texts`."""

        def encode(some: torch.Tensor) -> torch.Tensor:
            some = some.to(self.device)
            run = _on_tensors(self.text_runner) if self.text_runner else self.text_features
            features = by_length(run, some, self.pad) if self.pays_by_length(some) else run(some)
            return self.similarity.embed_text(features.float())

        return self._halving(encode, tokens, "texts")

    def _halving(self, encode: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, what: str) -> torch.Tensor:
        """Rows encoded at once, or in halves where that runs out of memory and nobody waits for a gradient."""
        try:
            return encode(inputs)
        except Exception as error:
            if torch.is_grad_enabled() or not is_out_of_memory(error):
                raise
            why = str(error).splitlines()[0][:200]
        backend(self.device).release()  # here, where the failed pass's tensors are gone
        count = len(inputs)
        if count < 2:
            fix = "Lower the image size, or close what else uses the device."
            raise ClipftError(what, f"a single one does not fit into memory ({why})", fix, code="memory.single_too_large")
        say(f"Out of memory with {count} {what}: in halves.")
        return torch.cat([self._halving(encode, part, what) for part in inputs.split(-(-count // 2))])

    def class_embeddings(self, classes: Sequence[str], templates: Sequence[str] = ()) -> torch.Tensor:
        """One embedding per class (n, embed_dim): the mean over the prompt templates, as in CLIP's zero-shot recipe, or what was
        learned of the class.

        Args:
            templates: in place of the model's own; then nothing learned counts.
        """
        known = self.learned
        if known and templates and tuple(templates) != tuple(self.prepared().prompts):
            known = {}
        templates = templates or self.prepared().prompts
        asked = [name for name in classes if name not in known]
        texts = [template.format(spoken(name)) for name in asked for template in templates]
        embedded = self.encode_texts(texts).view(len(asked), len(templates), -1) if asked else torch.zeros(0, 1, self.embed_dim)
        means = iter(self.similarity.mean(embedded, 1))
        return torch.stack([known[name].to(self.device) if name in known else next(means) for name in classes])
