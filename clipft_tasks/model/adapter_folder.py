"""Low-rank updates kept beside their base: a folder of a few MB.

    adapter.safetensors   the updates, and whatever else trained: heads, temperature, what the similarity learned
    adapter.json          the base by name and digest, and the form of the updates
    card.json, preprocessing.json   those of the model package that the same training made

`model.start` takes such a folder as it takes a package; `build.load` opens the base and merges.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..contracts.low_rank import AdapterCard, LowRankForm
from ..core.errors import ClipftError
from ..core.files import atomic_folder
from .adapters import add_low_rank, merge_low_rank
from .clip import Clip
from .package import CARD, PREPROCESSING, weights_digest

ADAPTER = "adapter.safetensors"
ADAPTER_CARD = "adapter.json"


@dataclass(frozen=True)
class Adapter:
    """What a training with low-rank updates changed.

    Args:
        tensors: by their names in the adapted model.
    """

    card: AdapterCard
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, clip: Clip, form: LowRankForm, trained: frozenset[str]) -> "Adapter":
        """That of a model before it is merged.

        Args:
            trained: names of what changed.
        """
        tensors = {name: value.detach().cpu().clone() for name, value in clip.state(trained).items()}
        numbers = sum(value.numel() for value in tensors.values())
        return cls(AdapterCard(base=clip.source, digest=clip.digest, form=form, numbers=numbers), tensors)

    def write(self, folder: Path, package: Path | None = None) -> Path:
        """Write it whole or not at all.

        Args:
            package: made of the same training; its description goes along, and only with that can the folder be opened.
        """
        with atomic_folder(folder) as building:
            save_file(self.tensors, building / ADAPTER, metadata={"format": "pt"})
            (building / ADAPTER_CARD).write_text(json.dumps(self.card.to_json(), indent=1, sort_keys=True, ensure_ascii=False))
            if package:
                for name in (CARD, PREPROCESSING):
                    shutil.copyfile(package / name, building / name)
        return folder

    @classmethod
    def read(cls, folder: Path) -> "Adapter":
        """What `write` wrote. Raises ClipftError where it cannot be read."""
        try:
            card = AdapterCard.from_json(json.loads((folder / ADAPTER_CARD).read_text("utf-8")), str(folder))
            return cls(card, load_file(folder / ADAPTER))
        except (OSError, ValueError, SafetensorError) as error:
            why = f"it cannot be read ({str(error).splitlines()[0]})"
            raise ClipftError(f"adapter {folder}", why, "Fetch it from its run again.", code="adapter.invalid") from error

    def merge_into(self, clip: Clip) -> None:
        """Put it on its base, which was prepared as for the training, and merge. Raises ClipftError where it does not fit."""
        add_low_rank(clip.model, self.card.form, 0)
        try:
            clip.load_state(self.tensors, some=True)
        except RuntimeError as error:
            why = f"it does not fit its base: {' '.join(str(error).split())[:200]}"
            raise ClipftError(f"adapter of {self.card.base}", why, "Train it again.", code="adapter.invalid") from error
        merge_low_rank(clip.model)
        clip.similarity.fitted = True
        clip.model.requires_grad_(True).eval()


def digest_of(base: str, folder: Path) -> str:
    """Identity of the model that a base with this digest and an adapter make."""
    return f"{base[:32]}{weights_digest(folder / ADAPTER)[:32]}"
