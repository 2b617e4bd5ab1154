"""``kvmarket lend --resize``: have a lender that runs already lend more or less memory."""

from __future__ import annotations

from rich.console import Console

from kvmarket.errors import MisuseError
from kvmarket.lend.resize import Resized, ask


def resize(
    address: str | None,
    gpu: int | None,
    gb: float | None,
    host_gb: float | None,
    keep_free: float,
    lender: int | None,
) -> None:
    """Ask for the new sizes, in GB, and print one line that says what the lender lends since.

    Raises what `kvmarket.lend.resize.ask` raises, and MisuseError for a size that no machine has, or `keep_free`.
    """
    if keep_free:
        raise MisuseError("--keep-free is chosen when a lender starts, and stays; leave it out with --resize")
    resized = ask(address, gpu_bytes=_bytes(gb), gpu=gpu, host_bytes=_bytes(host_gb), lender=lender)
    Console().print(line_of(resized), soft_wrap=True, highlight=False)


def line_of(resized: Resized) -> str:
    """What a lender lends: before and since, where that differs, and what keeps it from lending so much now."""
    parts = []
    for old, new in zip(resized.before.memories, resized.after.memories, strict=True):
        sizes = [f"{memory.nbytes / 1e9:g}" for memory in (old, new)]
        size = sizes[1] if old.nbytes == new.nbytes else " -> ".join(sizes)
        kept = f", while {new.keep_free / 1e9:g} GB stay free" if new.keep_free and new.nbytes else ""
        parts.append(f"{size} GB of {new.name}{kept}")
    paused = "; it is paused: this counts after SIGUSR2" if resized.after.paused else ""
    return f"lender {resized.after.process.pid} lends {', and '.join(parts)}{paused}"


def _bytes(gb: float | None) -> int | None:
    if gb is not None and not 0 <= gb < 1e9:  # also where it is no number
        raise MisuseError(f"{gb} GB to lend; give a size that this machine has")
    return None if gb is None else int(gb * 1e9)
