"""The state of a market as one screen. The table fits 80 columns; long lines wrap at the terminal's width."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from rich.console import Group
from rich.filesize import pick_unit_and_suffix
from rich.table import Table
from rich.text import Text

from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.status import MemberStatus, Status

HITS, IMPORTED, FETCHED = "vllm_tokens_asked", "vllm_tokens_imported", "bytes_fetched"  # names of counters
LENT, GIVEN_UP, TAKEN_BACK = "blocks_lent", "blocks_given_up", "blocks_taken_back"  # of a lender
FAILED = ("fetch_cut", "fetch_stale", "fetch_corrupt", "fetch_failed", "pool_unreachable", "vllm_hook_failed")
HEADINGS = ("pid", "port", "space", "offers", "hits", "imported", "fetched", "failed")
UNKNOWN = "-"
PREFIXES = ["", "k", "M", "G", "T", "P", "E"]
SUMS = (
    "blocks: counted once, however many engines offer them; offers: once for each engine.",
    "hits: prompt tokens that other engines held; imported: those of them that came; fetched: bytes of blocks from "
    "other engines; failed: blocks, copies and calls that went wrong. All since the process of the engine started, "
    f"one second late; {UNKNOWN}: not counted there (vLLM's workers of several ranks count on /metrics alone).",
)


def screen_of(place: Address, status: Status) -> Group:
    """The screen: engines, spaces, failures by reason, and the counters of the service."""
    spaces = {space.name: number for number, space in enumerate(status.spaces, 1)}
    offers = sum(member.offers for member in status.members)
    lenders = [member for member in status.members if member.lends]
    engines = len(status.members) - len(lenders)
    title = f"{status.blocks:,} blocks on offer, {offers:,} offers, {engines} engines, {len(lenders)} lenders"
    lines = [
        *(_space(name, number, status.members) for name, number in spaces.items()),
        *(["engines share within one space alone; kvmarket top --why says why"] if len(spaces) > 1 else []),
        *map(_lender, lenders),
        *_failures(status.members),
        f"counted by the service: {_listed(status.counters)}",
        *SUMS,
    ]
    head = Text(f"service {status.service.pid} at {place}\n{title}", "bold")
    return Group(head, _engines(status.members, spaces), *map(Text, lines))


def short(amount: int | None, unit: str = "") -> str:
    """`amount` in at most seven characters, and its unit; from a million on with one decimal. `UNKNOWN` for None."""
    if amount is None:
        return UNKNOWN
    if amount < 1_000_000:
        return f"{amount:,}{unit}"
    size, prefix = pick_unit_and_suffix(amount, PREFIXES, 1000)
    return f"{amount / size:.1f}{prefix}{unit}"


def total(counters: Mapping[str, int], names: Iterable[str]) -> int | None:
    """The sum of the counters with these names, over all reasons; None if there is no such counter."""
    wanted = frozenset(names)
    amounts = [amount for key, amount in counters.items() if key.partition("{")[0] in wanted]
    return sum(amounts) if amounts else None


def _engines(members: Iterable[MemberStatus], spaces: Mapping[str, int]) -> Table:
    """One row for each engine, by space and pid; `UNKNOWN` where nothing is counted."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for member in sorted(members, key=lambda member: (spaces[member.space], member.pid)):
        counted = member.counters
        table.add_row(
            str(member.pid),
            str(member.label.port or UNKNOWN),
            str(spaces[member.space]),
            short(member.offers),
            *(short(total(counted, [name])) for name in (HITS, IMPORTED)),
            short(total(counted, [FETCHED]), "B"),
            short(total(counted, FAILED) or 0 if counted else None),
        )
    return table


def _space(name: str, number: int, members: Iterable[MemberStatus]) -> str:
    """A line about one space: its name, its number of engines, and the names of their models."""
    labels = [member.label.model for member in members if member.space == name and not member.lends]
    models = ", ".join(sorted(set(labels) - {""})) or UNKNOWN
    return f"space {number}: {name}, engines: {len(labels)}, model: {models}"


def _lender(member: MemberStatus) -> str:
    """A line about a lender: what it keeps, and what it has kept and given up so far."""
    kept, gave, took = (short(total(member.counters, [name]) or 0) for name in (LENT, GIVEN_UP, TAKEN_BACK))
    return (
        f"{member.pid} lends {member.pools} segments, with {short(member.offers)} blocks; "
        f"kept so far: {kept}, given up for others: {gave}, taken back: {took}"
    )


def _failures(members: Iterable[MemberStatus]) -> Iterator[str]:
    """One line for each engine with counted failures: which, and how often."""
    for member in members:
        failed = {key: amount for key, amount in member.counters.items() if key.partition("{")[0] in FAILED}
        if failed:
            yield f"failed in {member.pid}: {_listed(failed)}"


def _listed(counters: Mapping[str, int]) -> str:
    """Counters with their reasons, in a fixed order."""
    parts = []
    for key, amount in sorted(counters.items()):
        name, _, reason = key.partition("{")
        parts.append(f"{name} {amount:,} ({reason[:-1]})" if reason else f"{name} {amount:,}")
    return ", ".join(parts)
