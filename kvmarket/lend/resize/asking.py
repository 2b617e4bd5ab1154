"""The asking side: any process of the user may ask a lender for another size."""

from __future__ import annotations

import os
from typing import NamedTuple

from kvmarket.errors import AddressError, MessageError, MisuseError
from kvmarket.lend.resize.messages import AskLent, Lent, Memory, Question, Resize, Size, unpack_answer
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.lender_sockets import LenderSocket, remove_dead
from kvmarket.registry.protocol.messages import Refused, pack_message
from kvmarket.registry.protocol.packets import PacketSocket, dial

ANSWER_SECONDS = 10.0  # a lender that allocates a segment of host memory answers when it has done so
SECONDS_A_GB = 1.0  # besides, to give back what it lends: the kernel frees 1 GB in some 0.2 s
_MOST = (1 << 63) - 1  # bytes


class Resized(NamedTuple):
    """What a lender lent when it was asked, and what it lends since. Both list the same memories in the same order."""

    before: Lent
    after: Lent


def ask(
    address: str | os.PathLike[str] | None = None,
    *,
    gpu_bytes: int | None = None,
    gpu: int | None = None,
    host_bytes: int | None = None,
    lender: int | None = None,
    seconds: float = ANSWER_SECONDS,
) -> Resized:
    """Ask a lender of the market at `address` to lend so much from now on; return when it does.

    `gpu_bytes`, `host_bytes`: the most that it lends of its GPU, and of the host; 0 gives all back, None leaves it as
    it is. `gpu`: the number of the GPU that is meant, as the lender numbers them; not needed, it lends one at most.
    `lender`: its process number, if several run. What is given up is dead before this returns, its memory free as soon
    as readers have dropped their mappings. What is added is taken when it is needed. While a lender is paused, the new
    sizes count for the time after that.

    Waits up to `seconds` for the lender, and `SECONDS_A_GB` for each GB that it lends, to give it back. Raises, before
    anything is changed: MisuseError if no size is asked for, for memory that the lender does not lend, and if several
    lenders run and none is named; AddressError if none runs, if it is another user's, or does not answer; VersionError
    if it is of another version. Raises AddressError, too, if a lender ends or is stopped while it does what was asked.
    """
    sizes = [(of_gpu, size) for of_gpu, size in ((True, gpu_bytes), (False, host_bytes)) if size is not None]
    if not sizes:
        raise MisuseError("no new size; give --gb or --host-gb (gpu_bytes or host_bytes), 0 to have all of it back")
    if gpu is not None and gpu_bytes is None:
        raise MisuseError(f"GPU {gpu} without a new size; give --gb (gpu_bytes)")
    for _, nbytes in sizes:
        if not 0 <= nbytes <= _MOST:
            raise MisuseError(f"{nbytes} bytes to lend; give a size from 0 on that this machine has")
    at = _chosen(Address(address), lender)
    with _connected(at) as sock:
        before = _answered(sock, at, AskLent(), seconds, "nothing has changed")
        if (before.process.namespace, before.process.pid) != (at.namespace, at.pid):
            raise MessageError(f"{at.path} is not that of the process that answers there ({before.process.pid})")
        wanted = tuple(Size(_meant(before, gpu, of_gpu=of_gpu).gpu, nbytes) for of_gpu, nbytes in sizes)
        patience = seconds + SECONDS_A_GB * sum(memory.lent for memory in before.memories) / 1e9
        after = _answered(sock, at, Resize(wanted), patience, "ask again to see whether it has done it")
    return Resized(before, after)


def _chosen(place: Address, lender: int | None) -> LenderSocket:
    """The lender that is meant; one in our own PID namespace before others with its number. Raises as `ask`."""
    found = remove_dead(place)
    running = [each for each in found if each.owner_is(os.geteuid())] or found  # strangers may listen there too
    if not running:
        raise AddressError(f"no lender runs at {place}; start one with `kvmarket lend`")
    named = [each for each in running if lender in (None, each.pid)]
    found = [each for each in named if lender is not None and each.near] or named
    pids = ", ".join(str(each.pid) for each in running)
    if not found:
        raise AddressError(f"no lender {lender} runs at {place}; name one that does: {pids}")
    if len(found) > 1 and lender is not None:
        raise MisuseError(
            f"lenders in several containers have the number {lender}; ask in the container of the one meant"
        )
    if len(found) > 1:
        raise MisuseError(f"several lenders run at {place}: {pids}; say which one with --lender PID")
    return found[0]


def _connected(at: LenderSocket) -> PacketSocket:
    """Connect to a lender of this user. Raises AddressError or VersionError."""
    try:
        owner = at.owner
        if owner != os.geteuid():
            raise AddressError(f"lender {at.pid} is another user's (uid {owner}); ask as that user")
        return dial(at.path, "lender")
    except OSError as error:
        raise AddressError(
            f"lender {at.pid} lets nobody in ({error.strerror}): it has just ended, or is stopped; "
            f"then have it go on with `kill -CONT {at.pid}`"
        ) from error


def _answered(sock: PacketSocket, at: LenderSocket, question: Question, seconds: float, then: str) -> Lent:
    """What the lender answers. Raises AddressError without an answer, with `then` in its text, or what it refuses."""
    sock.send(pack_message(question))
    frame = sock.wait(seconds)
    if frame is None and sock.closed:
        raise AddressError(f"lender {at.pid} has hung up, or ended; {then}")
    if frame is None:
        raise AddressError(
            f"lender {at.pid} has not answered within {seconds:.0f} s; {then}. "
            f"If it is stopped, have it go on with `kill -CONT {at.pid}`"
        )
    answer = unpack_answer(frame)
    if isinstance(answer, Refused):
        kind = MisuseError if answer.kind == MisuseError.__name__ else MessageError
        raise kind(f"lender {at.pid} refuses: {answer.reason}")
    return answer


def _meant(lent: Lent, gpu: int | None, *, of_gpu: bool) -> Memory:
    """The memory that is meant: of the host, or of a GPU with this number, if one is given. Raises MisuseError."""
    for memory in lent.memories:
        if (memory.gpu is not None) == of_gpu and (not of_gpu or gpu in (None, memory.gpu)):
            return memory
    meant = "host memory" if not of_gpu else "memory of a GPU" if gpu is None else f"memory of GPU {gpu}"
    names = " and ".join(memory.name for memory in lent.memories)
    raise MisuseError(
        f"lender {lent.process.pid} lends no {meant}, but {names}; name that, or start another lender for the other"
    )
