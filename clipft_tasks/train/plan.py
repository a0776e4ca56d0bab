"""The plan: what the hardware allows, each decision with its reason and what was measured for it."""

import shutil
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..core.decision import Decision
from ..core.errors import ClipftError
from ..data.loader import BUCKETS
from ..devices.hardware import Hardware, free_memory, keep_freed_memory, probe, use_threads
from ..devices.memory import is_out_of_memory, release
from ..model import attention
from ..model.activation_checkpointing import checkpoint_blocks, plain_blocks, towers_of_blocks
from ..model.attention import Policy
from ..model.clip import Clip
from ..spec import RunSpec
from . import microbenchmarks, schedule

GAIN = 1.2  # a lower precision must be this much faster: it costs casts and, in fp16, skipped steps
EMULATED = 2  # times that fp16 is faster than bf16 on GPUs that only emulate bf16 (before Ampere), at least
SHARE = 0.7  # of the free memory that a plan fills; the rest is for what is not predicted
WORKSPACE = 1.5  # times what autograd keeps: gradients in flight and the kernels' own buffers
SMALL = 8  # pairs a pass below which blocks are rather run again than kept
COMPILE_SECONDS = {"cuda": 60, "cpu": 90}  # of both towers at one size, seen
COMPILE_GAIN = 1.3  # bench/train_gpu.py
PROBED = 32  # images of a timed step: with fewer, what a batch costs in memory traffic does not show
HEAD = 64  # width of an attention head, in nearly every tower
EVERY = {"none": 0, "some": 2, "all": 1}  # n-th block that is checkpointed


@dataclass(frozen=True)
class Plan:
    """Decisions of one run. `to_dict` is what is logged and what the training task receives."""

    device: Decision  # mps, cuda, cpu
    processes: Decision
    precision: Decision  # fp32, bf16, fp16
    layout: Decision  # contiguous, channels_last
    threads: Decision
    workers: Decision
    memory_gb: Decision
    stages: Decision  # [{first, sides, plain}]: image sizes over the run
    attention: Decision  # fused, sliced, chunked
    checkpointing: Decision  # none, some, all
    micro_batch: Decision  # {side: pairs a pass}
    accumulation: Decision  # {side: passes a step}
    compile: Decision
    flops: Decision  # {side: of one pair}, and what the device can do

    def to_dict(self) -> dict[str, dict[str, Any]]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, dict[str, Any]]) -> "Plan":
        return cls(**{name: Decision(**value) for name, value in content.items()})

    def lines(self) -> list[str]:
        return [f"{name:14} {_short(decision.value):>12}  {decision.reason}" for name, decision in vars(self).items()]

    @property
    def sides(self) -> list[int]:
        return sorted(int(side) for side in self.micro_batch.value)

    @property
    def micro_batches(self) -> dict[int, int]:
        return {int(side): pairs for side, pairs in self.micro_batch.value.items()}

    def policy(self, free: int) -> Policy:
        """Attention with `free` bytes to spare."""
        return policy(self.attention.value, free)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        kinds = set(value.values())
        return str(kinds.pop()) if len(kinds) == 1 else ", ".join(f"{k}: {v}" for k, v in value.items())
    if isinstance(value, list):
        return " → ".join("/".join(str(s) for s in stage["sides"]) for stage in value)
    return str(value)


def policy(name: str, free: int) -> Policy:
    """Attention with `free` bytes to spare; sequences so short that their scores keep little stay fused."""
    return Policy(name, attention.affordable(free), attention.pays_from(HEAD))  # type: ignore[arg-type]


def make(spec: RunSpec, clip: Clip, rows: int) -> Plan:
    """Decide how to run `spec` on this machine.

    Args:
        rows: of the training split.
    Raises:
        ClipftError: a device that is not there, or a memory ceiling below a single pair.
    """
    machine = probe(spec.memory.device)
    use_threads(machine.cores)
    keep_freed_memory()  # so that what is measured is what training will see
    device = Decision(machine.device, f"{'asked for' if spec.memory.device != 'auto' else 'the fastest here'}; {machine.name}")
    layout = layout_of(machine.device, clip)
    precision = _precision(spec, machine, clip, layout.value)
    batch = min(spec.train.batch, rows)
    steps = max(1, rows // batch) * spec.train.epochs
    stages = schedule.stages(spec.resolution, steps, multiple(clip))
    every = schedule.sides(spec.resolution, multiple(clip))
    processes = _processes(spec, machine, batch)
    share = -(-batch // processes.value)
    budget, ceiling = _ceiling(spec, machine, processes.value)
    clip.to(machine.device)
    memory = _memory(spec, machine, clip, every, precision.value, share, budget, ceiling)
    flops = {str(side): microbenchmarks.pair_flops(clip, side) for side in every}
    return Plan(
        device=device,
        processes=processes,
        precision=precision,
        layout=layout,
        threads=Decision(max(1, machine.cores // processes.value), _threads_reason(machine)),
        workers=_workers(spec, machine, processes.value),
        memory_gb=ceiling,
        stages=Decision([s.to_dict() for s in stages], f"{spec.resolution.schedule}, {steps} steps"),
        **memory,
        compile=_compile(spec, machine, clip, precision, layout.value, every, steps * share),
        flops=Decision(
            flops, "arithmetic of one pair, forward and backward", {"device_flops": _peak(machine, precision.value)}
        ),
    )


def multiple(clip: Clip) -> int:
    """What every image side must be a multiple of: the patch, or 16 for convolutional towers."""
    visual = clip.model.visual
    patch = getattr(visual, "patch_size", None) or getattr(
        getattr(getattr(visual, "trunk", None), "patch_embed", None), "patch_size", None
    )
    return int(patch[0]) if patch else 16


def layout_of(device: str, clip: Clip) -> Decision:
    """The memory layout in which the image tower runs fastest on a device."""
    convolutional = any(isinstance(m, torch.nn.Conv2d) and m.groups > 1 for m in clip.model.visual.modules())
    if not convolutional:
        return Decision("contiguous", "the image tower is no convolutional network")
    if device == "mps":
        return Decision("contiguous", "on MPS, channels-last convolutions are converted back and forth")
    return Decision("channels_last", "depthwise convolutions run faster so (bench/layout.py)")


def _precision(spec: RunSpec, machine: Hardware, clip: Clip, layout: str) -> Decision:
    if spec.memory.precision != "auto":
        return Decision(spec.memory.precision, "asked for")
    candidates = {"cuda": ("bf16", "fp16"), "mps": ("fp16", "bf16"), "cpu": ("bf16",)}[machine.device]
    base = _peak(machine, "fp32")
    products = {name: _peak(machine, name, base / 4) / base for name in candidates}
    measured = {f"product_{name}_speedup": round(ratio, 3) for name, ratio in products.items()}
    likely = max(products, key=lambda name: products[name])
    if machine.device == "cuda" and products["fp16"] < EMULATED * products["bf16"]:
        likely = "bf16"  # as fast, and nothing overflows
    # Where a bare matrix product gains nothing the model cannot either, and trying could take minutes.
    if products[likely] < GAIN:
        return Decision("fp32", f"a matrix product in {likely} runs at {products[likely]:.2g}x the speed of fp32", measured)

    def seconds(precision: str) -> float:
        return microbenchmarks.image_step_seconds(clip, machine.device, layout, precision, spec.resolution.train, PROBED)

    ratio = seconds("fp32") / seconds(likely)
    measured["step_speedup"] = round(ratio, 3)
    reason = f"a training step in {likely} runs at {ratio:.2g}x the speed of fp32"
    if machine.chip and machine.chip.native_half not in ("", likely):
        reason += f", though {machine.chip.native_half} is what {machine.chip.name} computes natively"
    return Decision(likely, reason, measured) if ratio >= GAIN else Decision("fp32", f"{reason}; casts would not pay", measured)


def _peak(machine: Hardware, precision: str, atleast: float = 0.0) -> float:
    """Measured arithmetic per second of matrix products; on a GPU once for chip and torch version."""
    if machine.device == "cpu":  # shared with others, so measured each time
        return microbenchmarks.product_flops("cpu", precision, atleast)
    what = f"{machine.name}: {precision} product"
    return microbenchmarks.remembered(what, lambda: microbenchmarks.product_flops(machine.device, precision, atleast))


def _threads_reason(machine: Hardware) -> str:
    if machine.chip and machine.device == "mps":
        return f"the fast cores of {machine.chip.name}; the other {machine.chip.other_cores} would hold them up"
    return "the cores this process may use; more threads than cores cost twice the time"


def _workers(spec: RunSpec, machine: Hardware, processes: int) -> Decision:
    cores = machine.cores // processes
    if spec.memory.workers:
        return Decision(spec.memory.workers, "asked for")
    if machine.device == "cpu":
        return Decision(max(1, cores // 2), "half the cores: the others train")
    return Decision(max(2, min(16, cores - 1)), "the cores but one, which feeds the device; threads, so nothing is forked")


def _processes(spec: RunSpec, machine: Hardware, batch: int) -> Decision:
    wanted = spec.memory.processes or machine.devices
    if machine.device == "cuda" and wanted > machine.devices:
        raise ClipftError(
            f"memory.processes = {wanted}", f"there are {machine.devices} CUDA devices", f"Use {machine.devices} or fewer."
        )
    if machine.device == "mps" and wanted > 1:
        raise ClipftError("memory.processes", "a Mac has one GPU, which processes would only share", "Leave it empty.")
    if spec.memory.processes:
        return Decision(wanted, "asked for")
    return Decision(max(1, min(wanted, batch)), "one a device" if wanted > 1 else "there is one device")


def _ceiling(spec: RunSpec, machine: Hardware, processes: int) -> tuple[float, Decision]:
    """Bytes for one process, which has a GPU of its own or a share of the CPU's memory."""
    sharing = processes if machine.device == "cpu" else 1
    shared = f", shared by {sharing} processes" if sharing > 1 else ""
    if spec.memory.memory_gb:
        own = spec.memory.memory_gb / sharing
        return own * 2**30, Decision(own, f"asked for{shared}")
    budget = machine.memory * SHARE / sharing
    source = "what macOS recommends for the GPU" if machine.device == "mps" else "what is free"
    measured = {"free_gb": round(machine.memory / 2**30, 2)}
    return budget, Decision(round(budget / 2**30, 2), f"{SHARE:.0%} of {source}{shared}", measured)


def _memory(
    spec: RunSpec, machine: Hardware, clip: Clip, sides: tuple[int, ...], precision: str, share: int, budget: float,
    ceiling: Decision,
) -> dict[str, Decision]:  # fmt: skip
    """Attention, checkpointing and micro-batches together: what one keeps decides what the others may."""
    chosen = _attention(spec, machine, clip, max(sides))
    trained = sum(p.numel() * 4 for p in clip.model.parameters())
    fixed = 4 * trained  # weights, gradients, two moments of AdamW
    options = ["none", "some", "all"] if spec.memory.checkpointing == "auto" else [spec.memory.checkpointing]
    if spec.memory.checkpointing == "auto" and not towers_of_blocks(clip.model):
        options = ["none"]
    fits: dict[int, int] = {}
    for option in options:
        if EVERY[option]:
            checkpoint_blocks(clip.model, EVERY[option])
        try:
            lines = {side: _kept(clip, side, precision, policy(chosen.value, free_memory(machine.device))) for side in sides}
        finally:
            plain_blocks(clip.model)
        fits = {side: int((budget - fixed - start) // (each * WORKSPACE)) for side, (start, each) in lines.items()}
        if min(fits.values()) >= min(SMALL, share):
            break
    each = lines[max(sides)][1] * WORKSPACE
    measured = {"pair_mib": round(each / 2**20, 2), "fixed_gib": round(fixed / 2**30, 3)}
    if min(fits.values()) < 1 and not spec.memory.micro_batch:
        need = (fixed + lines[max(sides)][0] + each) / 2**30
        raise ClipftError(
            f"a memory ceiling of {ceiling.value} GiB",
            f"weights and optimizer need {fixed / 2**30:.2f} GiB and one pair at {max(sides)} px {each / 2**20:.0f} MiB",
            f"Raise memory.memory_gb to {need + 0.01:.2f} or lower resolution.train.",
        )
    if spec.memory.checkpointing != "auto":
        why = "asked for"
    elif option == "none":
        why = "blocks are kept: there is room, and running them again costs a third of a step"
    else:
        why = f"without it fewer than {SMALL} pairs fit"
    size = {}
    for side in sides:
        if spec.memory.micro_batch:
            size[str(side)] = min(spec.memory.micro_batch, share)
        else:
            size[str(side)] = share if fits[side] >= share else max(b for b in BUCKETS if b <= fits[side])
    passes = {side: -(-share // pairs) for side, pairs in size.items()}
    if spec.memory.micro_batch:
        reason = "asked for"
    elif max(passes.values()) == 1:
        reason = f"the whole batch fits ({each / 2**20:.1f} MiB a pair measured)"
    else:
        reason = f"{each / 2**20:.1f} MiB a pair measured at {max(sides)} px, {fixed / 2**30:.2f} GiB fixed"
    gathered = (
        "no second pass is paid" if max(passes.values()) == 1 else "features are cached, so the gradient is the whole batch's"
    )
    return {
        "attention": chosen,
        "checkpointing": Decision(option, why),
        "micro_batch": Decision(size, reason, measured),
        "accumulation": Decision(passes, gathered),
    }


def _kept(clip: Clip, side: int, precision: str, how: Policy) -> tuple[float, float]:
    """Bytes (fixed, per pair); a probe that does not fit itself says that no pair does."""
    try:
        return microbenchmarks.kept_bytes(clip, side, precision, how)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        release(clip.device)
        return 0.0, float(2**40)


def _attention(spec: RunSpec, machine: Hardware, clip: Clip, side: int) -> Decision:
    if spec.memory.attention != "auto":
        return Decision(spec.memory.attention, "asked for")
    if attention.has_fused_backward(machine.device):
        return Decision("fused", f"{machine.device} has a fused kernel for both passes")
    tokens = (side // multiple(clip)) ** 2 + 1
    convolutional = not (
        hasattr(clip.model.visual, "patch_size") or hasattr(getattr(clip.model.visual, "trunk", None), "patch_embed")
    )
    longest = max(0 if convolutional else tokens, clip.context_length)
    if longest > attention.pays_from(HEAD):
        return Decision(
            "chunked", f"no fused backward here, and scores of {longest} tokens would outweigh all else that is kept"
        )
    return Decision("fused", f"sequences of {longest} tokens keep little; chunks would cost more than they save")


def _compile(
    spec: RunSpec, machine: Hardware, clip: Clip, precision: Decision, layout: str, sides: tuple[int, ...], pairs: int
) -> Decision:  # fmt: skip
    if spec.memory.compile != "auto":
        return Decision(spec.memory.compile == "on", "asked for")
    if machine.device == "mps":
        return Decision(False, "the compiler for MPS is not ready for training")
    if machine.device == "cpu":
        return Decision(False, "on a CPU it gains a training step little (bench/layout.py); memory.compile turns it on")
    if not (shutil.which("cc") or shutil.which("gcc")):
        return Decision(False, "there is no C compiler, which Triton needs")
    seconds = microbenchmarks.image_step_seconds(clip, machine.device, layout, precision.value, max(sides), PROBED) * pairs
    cost = COMPILE_SECONDS["cuda"] * len(sides)
    saved = seconds * (1 - 1 / COMPILE_GAIN)
    measured = {"run_seconds": round(seconds, 1), "saved_seconds": round(saved, 1), "compile_seconds": float(cost)}
    if saved > cost:
        return Decision(True, f"saves about {saved:.0f} s of {seconds:.0f} and costs {cost}", measured)
    return Decision(False, f"would save about {saved:.0f} s of {seconds:.0f} and cost {cost}", measured)
