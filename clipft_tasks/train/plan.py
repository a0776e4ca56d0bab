"""Planning a training run: what this machine allows, each decision with its reason and what was measured for it."""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..contracts.plan import AttentionName, Checkpointing, Layout, Plan, Precision
from ..core.console import say
from ..core.decision import Decision
from ..core.errors import ClipftError
from ..data.loader import BUCKETS
from ..devices import Device, Hardware, backend, hardware
from ..devices.memory import is_out_of_memory
from ..model import attention
from ..model.activation_checkpointing import checkpoint_blocks, plain_blocks, towers_of_blocks
from ..model.attention import Policy
from ..model.clip import Clip
from ..model.layout import layout_of
from ..spec import RunSpec
from . import microbenchmarks, schedule
from .footprint import Footprint, as_it_trains, footprint

GAIN = 1.2  # a lower precision must be this much faster: it costs casts and, in fp16, skipped steps
SHARE = 0.7  # of the free memory that a plan fills; the rest is for what is not predicted
WORKSPACE = 1.5  # times what autograd keeps: gradients in flight and the kernels' own buffers
SMALL = 8  # pairs a pass below which blocks are rather run again than kept
COMPILE_GAIN = 1.3  # bench/train_gpu.py
PROBED = 32  # images of a timed step: with fewer, what a batch costs in memory traffic does not show
LONGEST = 32  # captions that are tried for the memory of a pass
HEAD = 64  # width of an attention head, in nearly every tower
EVERY: dict[Checkpointing, int] = {"none": 0, "some": 2, "all": 1}  # n-th block that is checkpointed


def attention_policy(name: AttentionName, device: Device, limit: int | None = None) -> Policy:
    """Attention with what the device has to spare now; sequences so short that their scores keep little stay fused.

    Args:
        limit: bytes that training may use of the device.
    """
    free = device.memory_free() if limit is None else min(device.memory_free(), limit - device.memory_used())
    return Policy(name, attention.affordable(free), attention.pays_from(HEAD))


def reuse_or_make(
    spec: RunSpec, clip: Clip, rows: int, own: Plan | None, offered: Sequence[Plan], texts: Sequence[str] = ()
) -> Plan:
    """The plan of this piece of work. What is measured may differ next time, so a resumed run keeps its first plan.

    Args:
        rows: of the training split.
        own: the plan that this machine began the work with, if it did.
        offered: plans that were made elsewhere; one that is for hardware like this machine's holds here too.
        texts: see `make`.
    Raises: as `make`.
    """
    machine = hardware.detect(spec.memory.device)
    here = backend(machine.device).fingerprint(machine)
    if own is not None and own.device.value == here.device:
        return own
    for plan in offered:
        if plan.hardware == here:
            return plan
    others = [f"another is for {plan.hardware or 'hardware that it does not name'}" for plan in offered]
    if own is not None:
        others = [f"the work was begun on a {own.device.value} device", *others]
    if others:
        say(f"Planned anew: {'; '.join(dict.fromkeys(others))}; this machine is {here}.")
    return make(spec, clip, rows, texts)


def longest(texts: Iterable[str]) -> list[str]:
    """The longest few of many texts: what the memory of a pass is measured with."""
    return heapq.nlargest(LONGEST, set(texts), key=len)


def make(spec: RunSpec, clip: Clip, rows: int, texts: Sequence[str] = ()) -> Plan:
    """Decide how to run `spec` on this machine.

    Args:
        rows: of the training split. texts: the longest of its captions (`longest`).
    Raises:
        ClipftError: a device that is not there, or a memory limit below a single pair.
    """
    machine = hardware.set_up(spec.memory.device)  # so that what is measured is what training will see
    return _Planner(spec, clip, machine, backend(machine.device), tuple(texts)).plan(rows)


@dataclass(frozen=True)
class _Kept:
    """What towers keep for the backward pass, with blocks checkpointed in one way.

    Attributes:
        lines: bytes (fixed, per pair) by image size.
        fits: pairs that fit beside the weights, by image size.
    """

    checkpointing: Checkpointing
    lines: dict[int, tuple[float, float]]
    fits: dict[int, int]


@dataclass(frozen=True)
class _Planner:
    """Decides one thing after the other, for one model on one machine."""

    spec: RunSpec
    clip: Clip
    machine: Hardware
    device: Device
    texts: tuple[str, ...] = ()

    def plan(self, rows: int) -> Plan:
        spec, clip, machine = self.spec, self.clip, self.machine
        layout = layout_of(machine.device, clip)
        precision = self.precision(layout.value)
        batch = min(spec.train.batch, rows)
        steps = max(1, rows // batch) * spec.train.epochs
        sides = schedule.sides(spec.resolution, clip.tower.multiple)
        processes = self.processes(batch)
        share = -(-batch // processes.value)
        limit, limit_gb = self.memory_limit(processes.value)
        clip.to(machine.device)
        attention = self.attention(max(sides))
        fixed = footprint(spec, clip.model, on_host=self.device.shares_host_memory)
        kept = self.kept(attention.value, precision.value, sides, share, limit - fixed.total, fixed.copy)
        micro_batch = self.micro_batch(kept, share, fixed, limit_gb)
        passes = {side: -(-share // pairs) for side, pairs in micro_batch.value.items()}
        once = max(passes.values()) == 1
        asked = "asked for" if spec.memory.device != "auto" else "the fastest here"
        flops = {side: microbenchmarks.pair_flops(clip, side) for side in sides}
        return Plan(
            hardware=self.device.fingerprint(machine),
            device=Decision(machine.device, f"{asked}; {machine.name}"),
            processes=processes,
            precision=precision,
            layout=layout,
            threads=Decision(max(1, machine.cores // processes.value), self.device.threads_because(machine)),
            workers=self.workers(processes.value),
            memory_gb=limit_gb,
            phases=Decision(
                tuple(schedule.phases(spec.resolution, steps, clip.tower.multiple)),
                f"{spec.resolution.schedule}, {steps} steps",
            ),
            attention=attention,
            checkpointing=self.checkpointing(kept),
            micro_batch=micro_batch,
            accumulation=Decision(
                passes, "no second pass is paid" if once else "features are cached, so the gradient is the whole batch's"
            ),
            compile=self.compile(precision.value, layout.value, sides, steps * share),
            flops=Decision(
                flops, "arithmetic of one pair, forward and backward", {"device_flops": self.product_flops(precision.value)}
            ),
        )

    def precision(self, layout: Layout) -> Decision[Precision]:
        asked = self.spec.memory.precision
        if asked != "auto":
            return Decision(asked, "asked for")
        base = self.product_flops("fp32")
        speedups: dict[Precision, float] = {
            name: self.product_flops(name, base / 4) / base for name in self.device.half_precisions
        }
        measured = {f"product_{name}_speedup": round(ratio, 3) for name, ratio in speedups.items()}
        likely = self.device.likely_precision(speedups)
        # Where a bare matrix product gains nothing the model cannot either, and trying could take minutes.
        if speedups[likely] < GAIN:
            return Decision("fp32", f"a matrix product in {likely} runs at {speedups[likely]:.2g}x the speed of fp32", measured)

        def seconds(precision: Precision) -> float:
            side = self.spec.resolution.side
            return microbenchmarks.image_step_seconds(self.clip, self.machine.device, layout, precision, side, PROBED)

        ratio = seconds("fp32") / seconds(likely)
        measured["step_speedup"] = round(ratio, 3)
        reason = f"a training step in {likely} runs at {ratio:.2g}x the speed of fp32"
        chip = self.machine.chip
        if chip and chip.native_half not in ("", likely):
            reason += f", though {chip.native_half} is what {chip.name} computes natively"
        if ratio < GAIN:
            return Decision("fp32", f"{reason}; casts would not pay", measured)
        return Decision(likely, reason, measured)

    def product_flops(self, precision: Precision, atleast: float = 0.0) -> float:
        """Measured arithmetic of matrix products a second; once for chip and torch version where nobody shares the device."""
        name = self.machine.device
        if self.device.is_host:
            return microbenchmarks.product_flops(name, precision, atleast)
        what = f"{self.machine.name}: {precision} product"
        return microbenchmarks.remembered(what, lambda: microbenchmarks.product_flops(name, precision, atleast))

    def processes(self, batch: int) -> Decision[int]:
        asked = self.spec.memory.processes
        wanted = asked or self.machine.devices
        self.device.check_processes(wanted, self.machine)
        if asked:
            return Decision(wanted, "asked for")
        return Decision(max(1, min(wanted, batch)), "one a device" if wanted > 1 else "there is one device")

    def workers(self, processes: int) -> Decision[int]:
        cores = self.machine.cores // processes
        if self.spec.memory.workers:
            return Decision(self.spec.memory.workers, "asked for")
        if self.device.is_host:
            return Decision(max(1, cores // 2), "half the cores: the others train")
        return Decision(max(2, min(16, cores - 1)), "the cores but one, which feeds the device; threads, so nothing is forked")

    def memory_limit(self, processes: int) -> tuple[float, Decision[float]]:
        """Bytes for one process, which has a device of its own or a share of the CPU's memory; and the decision, in GiB."""
        sharing = processes if self.device.is_host else 1
        shared = f", shared by {sharing} processes" if sharing > 1 else ""
        if self.spec.memory.memory_gb:
            own = self.spec.memory.memory_gb / sharing
            return own * 2**30, Decision(own, f"asked for{shared}")
        free = self.machine.memory
        limit = free * SHARE / sharing
        reason = f"{SHARE:.0%} of {self.device.memory_from}{shared}"
        return limit, Decision(round(limit / 2**30, 2), reason, {"free_gb": round(free / 2**30, 2)})

    def attention(self, side: int) -> Decision[AttentionName]:
        asked = self.spec.memory.attention
        if asked != "auto":
            return Decision(asked, "asked for")
        if self.device.fused_attention:
            return Decision("fused", f"{self.device.name} has a fused kernel for both passes")
        longest = max(self.clip.tower.tokens(side), self.clip.context_length)
        if longest > attention.pays_from(HEAD):
            return Decision(
                "chunked", f"no fused backward here, and scores of {longest} tokens would outweigh all else that is kept"
            )
        return Decision("fused", f"sequences of {longest} tokens keep little; chunks would cost more than they save")

    def kept(
        self, name: AttentionName, precision: Precision, sides: tuple[int, ...], share: int, left: float, copy: int
    ) -> _Kept:  # fmt: skip
        """What pairs keep, with as few blocks checkpointed as leave room for some.

        Args:
            share: pairs of a step in each process.
            left: bytes beside what weights and optimizer take.
            copy: bytes of a copy of the run's state, for which there is room where a batch goes in parts anyway.
        """
        asked = self.spec.memory.checkpointing
        options: tuple[Checkpointing, ...] = ("none", "some", "all") if asked == "auto" else (asked,)
        if asked == "auto" and not towers_of_blocks(self.clip.model):
            options = ("none",)
        for option in options:
            if EVERY[option]:
                checkpoint_blocks(self.clip.model, EVERY[option])
            try:
                policy = attention_policy(name, self.device)
                with as_it_trains(self.clip.model, self.spec.train):
                    lines = {side: _kept_bytes(self.clip, side, precision, policy, self.texts) for side in sides}
            finally:
                plain_blocks(self.clip.model)
            fits, beside = (
                {side: int((room - start) // (each * WORKSPACE)) for side, (start, each) in lines.items()}
                for room in (left, left - copy)
            )
            # A second pass would cost more than the copy saves.
            if min(fits.values()) < share and min(beside.values()) >= SMALL:
                fits = beside
            kept = _Kept(option, lines, fits)
            if min(fits.values()) >= min(SMALL, share):
                break
        return kept

    def checkpointing(self, kept: _Kept) -> Decision[Checkpointing]:
        if self.spec.memory.checkpointing != "auto":
            return Decision(kept.checkpointing, "asked for")
        if kept.checkpointing == "none":
            return Decision("none", "blocks are kept: there is room, and running them again costs a third of a step")
        return Decision(kept.checkpointing, f"without it fewer than {SMALL} pairs fit")

    def micro_batch(self, kept: _Kept, share: int, needed: Footprint, limit: Decision[float]) -> Decision[dict[int, int]]:
        """Pairs a pass, by image size. Raises ClipftError where not even one fits.

        Args:
            needed: what is there whatever the size of a pass.
        """
        fixed = needed.total
        asked, largest = self.spec.memory.micro_batch, max(kept.lines)
        start, each = kept.lines[largest]
        each *= WORKSPACE
        measured = {"pair_mib": round(each / 2**20, 2), "fixed_gib": round(fixed / 2**30, 3)}
        if asked:
            return Decision(dict.fromkeys(kept.lines, min(asked, share)), "asked for", measured)
        if min(kept.fits.values()) < 1:
            need = (fixed + start + each) / 2**30
            raise ClipftError(
                f"a memory limit of {limit.value} GiB",
                f"{needed} are there all the time, and one pair at {largest} px takes {each / 2**20:.0f} MiB",
                f"Raise memory.memory_gb to {need + 0.01:.2f} or lower resolution.train.",
                code="memory.limit_too_low",
            )
        pairs = {side: share if fits >= share else max(b for b in BUCKETS if b <= fits) for side, fits in kept.fits.items()}
        if min(pairs.values()) >= share:
            return Decision(pairs, f"the whole batch fits ({each / 2**20:.1f} MiB a pair measured)", measured)
        reason = f"{each / 2**20:.1f} MiB a pair measured at {largest} px, {fixed / 2**30:.2f} GiB fixed"
        return Decision(pairs, reason, measured)

    def compile(self, precision: Precision, layout: Layout, sides: tuple[int, ...], pairs: int) -> Decision[bool]:
        """Whether the towers are compiled.

        Args:
            pairs: that this process sees in the whole run.
        """
        if self.spec.memory.compile != "auto":
            return Decision(self.spec.memory.compile == "on", "asked for")
        if reason := self.device.no_compile_because():
            return Decision(False, reason)
        name = self.machine.device
        seconds = microbenchmarks.image_step_seconds(self.clip, name, layout, precision, max(sides), PROBED) * pairs
        cost = self.device.compile_seconds * len(sides)
        saved = seconds * (1 - 1 / COMPILE_GAIN)
        measured = {"run_seconds": round(seconds, 1), "saved_seconds": round(saved, 1), "compile_seconds": float(cost)}
        if saved > cost:
            return Decision(True, f"saves about {saved:.0f} s of {seconds:.0f} and costs {cost:g}", measured)
        return Decision(False, f"would save about {saved:.0f} s of {seconds:.0f} and cost {cost:g}", measured)


def _kept_bytes(clip: Clip, side: int, precision: Precision, policy: Policy, texts: Sequence[str]) -> tuple[float, float]:
    """Bytes (fixed, per pair); a measurement that does not fit itself says that no pair does."""
    try:
        return microbenchmarks.kept_bytes(clip, side, precision, policy, texts)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        backend(clip.device).release()
        return 0.0, float(2**40)
