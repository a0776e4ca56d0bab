"""Which operators have an MPS kernel, known without a Mac: the kernel registry ships with torch (torchgen)."""

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import torchgen
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torchgen.gen import parse_native_yaml
from torchgen.model import DispatchKey

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


def fallbacks(names: Iterable[str]) -> set[str]:
    """Those of the operators that would fall back to the CPU."""
    ours = {n for n in names if not n.startswith("profiler::")}
    return {n for n in ours if n not in on_mps() and n.split(".")[0] not in CPU_ONLY}


class Recorder(TorchDispatchMode):
    """Notes the names of the operators that run while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not type it
        self.names: set[str] = set()

    # torch passes whatever an operator takes and gives
    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[object, ...] = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        name = func._schema.name.removeprefix("aten::") + (f".{func._overloadname}" if func._overloadname != "default" else "")
        self.names.add(name)
        return func(*args, **(kwargs or {}))
