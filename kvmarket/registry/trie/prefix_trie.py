"""A prefix trie of offers: finds the longest offered prefix by exact tokens.

`Space` uses it, in the service and in every engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from kvmarket.errors import MisuseError
from kvmarket.registry.trie.check import check
from kvmarket.registry.trie.cursor import Cursor
from kvmarket.registry.trie.node import NONE, Node
from kvmarket.registry.trie.tokens import Int32s, Int64s, Integers, as_offers, as_tokens
from kvmarket.registry.trie.tree import Place, Tree


class PrefixTrie:
    """Finds the longest offered prefix of a prompt, in whole blocks of `block_size` tokens.

    An offer is an int, 0 <= offer < 2**63 (in a `Space`: pool number and slot). It is on at most one block: remove it
    before you put it on another block. A block is identified by its tenant and all tokens up to its end, and holds up
    to OFFERS_PER_BLOCK offers, newest first. Tokens are compared exactly, as bytes. Blocks without a branch between
    them share one node of up to NODE_BLOCKS blocks, so a match compares long runs of memory and visits few nodes.

    max_blocks bounds the stored blocks, holes included: beyond it the leaf blocks that were matched (or inserted) least
    recently are evicted until the bound is kept. None: no bound.

    Memory: 4 bytes a token; 8 bytes a block for every row of its node, which has as many rows as its most-offered block
    has offers; 8 bytes a block if max_blocks is given; 4 bytes of index an offer if offers are consecutive numbers (see
    OfferIndex); about 500 bytes a node. Not thread-safe.

    >>> trie = PrefixTrie(block_size=2)
    >>> trie.insert([1, 2, 3, 4, 5], offers=[10, 11])
    >>> trie.insert([1, 2, 9, 9], offers=[20, 21])
    >>> trie.match([1, 2, 3, 4, 7, 7]), trie.match([1, 2, 9, 9]), trie.match([1, 3])
    ([20, 11], [20, 21], [])
    >>> trie.match_all([1, 2, 3, 4])
    [(20, 10), (11,)]
    >>> trie.remove([20]), len(trie)
    (1, 3)
    """

    NODE_BLOCKS = 512

    def __init__(self, block_size: int, *, max_blocks: int | None = None) -> None:
        if block_size < 1:
            raise MisuseError(f"block_size is {block_size}; a block has at least one token")
        if max_blocks is not None and max_blocks < 1:
            raise MisuseError(f"max_blocks is {max_blocks}; give at least one, or None for no bound")
        self.block_size = block_size
        self.max_blocks = max_blocks
        self._tree = self._empty()

    def _empty(self) -> Tree:
        return Tree(4 * self.block_size, self.NODE_BLOCKS, evicts=self.max_blocks is not None)

    def clear(self) -> None:
        """Remove everything, and free its memory at once. Cost: 0.2 us a node."""
        tree, self._tree = self._tree, self._empty()
        tree.let_go()

    def __len__(self) -> int:
        """Return how many blocks have at least one offer. Cost: O(1)."""
        return self._tree.held

    def insert(self, tokens: Integers, offers: Integers, first: int = 0, *, tenant: bytes = b"") -> None:
        """Put one offer on each whole block of `tokens` from block `first` on; each becomes the newest of its block.

        tokens: the whole prefix, a list of ints or an int32 array; a last part of less than a block is ignored. offers:
        one for each of those blocks. Blocks before `first` that the trie does not have become holes: blocks without an
        offer. Beyond OFFERS_PER_BLOCK the oldest offer of a block is dropped; an offer that the block has already
        becomes its newest. tenant: prefixes of different tenants never match each other.

        Raises TokenError, and MisuseError for offers that are too few, too many or out of range; nothing changed then.
        Cost: O(tokens), by memcmp and memcpy, and O(offers).
        """
        array, fresh = as_tokens(tokens), as_offers(offers)
        count = array.size // self.block_size
        if not 0 <= first <= count or fresh.size != count - first:
            raise MisuseError(
                f"{fresh.size} offers for {array.size} tokens in blocks of {self.block_size} from block {first} on: "
                f"give one for each of the {max(count - first, 0)} whole blocks"
            )
        if not fresh.size:
            return
        row = fresh if not first else np.concatenate((np.full(first, NONE, np.int64), fresh))
        self._tree.clock += 1
        self._put(self._tree.root, array, row, first, tenant)

    def place(self, offer: int) -> Place | None:
        """Return the place of the block that has `offer`, or None. Valid until the trie changes. Cost: a few us."""
        return self._tree.find(offer)

    def extend(self, offer: int, tokens: Integers, offers: Integers, place: Place | None = None) -> bool:
        """Put one offer on each block of `tokens`, which continue the block that has `offer`; False if no block has it.

        tokens: whole blocks. As `insert` of the whole prefix, which is not given here. place: of the block that has
        `offer`, if known. Raises TokenError, and MisuseError for offers that are too few, too many or out of range;
        nothing changed then. Cost: O(tokens), O(nodes above), and O(tokens of the node of `offer`). If the block is not
        the last of its node, the trie is walked again from the root, which costs O(tokens of the prefix) more.
        """
        array, fresh = as_tokens(tokens), as_offers(offers)
        if array.size != fresh.size * self.block_size:
            raise MisuseError(f"{fresh.size} offers for {array.size} tokens: give one a block of {self.block_size}")
        tree = self._tree
        place = place or tree.find(offer)
        if place is None:
            return False
        node, position = place
        tree.clock += 1
        if position + 1 < node.size:
            before = node.path(position + 1)
            blocks = len(before) // tree.width
            row = np.concatenate((np.full(blocks, NONE, np.int64), fresh))
            whole = np.concatenate((np.frombuffer(before, np.int32), array))
            self._put(tree.root, whole, row, blocks, self.tenant(place))
        else:
            tree.touch(node)
            self._put(node, array, fresh, 0)
        return True

    def fan(self, place: Place, heads: list[bytes], offers: Int64s) -> bool:
        """Put one offer on each of several sibling blocks, which continue the block at `place`. Cost: 4 us each.

        heads: the tokens of each, as bytes. Returns False, and changes nothing, if they must be put in one by one: if
        there is only one, two are equal, one exists already, or the block at `place` is not the last of its node.
        """
        tree, (node, position) = self._tree, place
        children = () if node.children is None else node.children
        alone = len(heads) < 2 or len(set(heads)) < len(heads) or position + 1 < node.size
        if alone or any(head in children for head in heads):
            return False
        tree.clock += 1
        tree.touch(node)
        tree.fan(node, heads, offers)
        if self.max_blocks is not None:
            tree.evict(self.max_blocks)
        return True

    def depth(self, place: Place) -> int:
        """Return the number of blocks of the prefix that ends at this place. Cost: O(nodes above)."""
        return place[0].start() + place[1] + 1

    def tenant(self, place: Place) -> bytes:
        """Return the tenant of the prefix that ends at this place. Cost: O(nodes above)."""
        return place[0].top().key[: -self._tree.width]

    def cursor(self) -> Cursor:
        """Return a cursor at the beginning of the trie. The trie may change between its steps."""
        return Cursor(self._tree)

    def _put(self, node: Node, tokens: Int32s, row: Int64s, first: int, tenant: bytes = b"") -> None:
        """Put `row` on the blocks of `tokens` below `node`, from block `first` on; new blocks before become holes.

        `tenant` counts only if the node is the root.
        """
        tree, size = self._tree, self.block_size
        at, count, rest = 0, row.size, None
        tokens = tokens[: count * size]
        while at < count:
            key = tokens[at * size : (at + 1) * size].tobytes()
            below = node.children and node.children.get(key if at else tenant + key)
            if not below:
                fresh, last = tokens[at * size :].tobytes(), row[at:]
                if not tree.lengthen(node, fresh, last):
                    tree.grow(node, fresh, last, b"" if at else tenant)
                break
            blocks = below.reach(tokens, at * size)
            if blocks < below.size and at + blocks < count:
                rest, below = below, tree.split(below, blocks)
            tree.offer(below, max(0, first - at), row[max(at, first) : at + blocks])
            if below.stamps is not None:
                below.stamps[:blocks] = tree.clock
            node, at = below, at + blocks
        if rest is not None and rest.parent is not None:
            above = rest.parent
            tree.join(rest)
            if above.parent is not None:
                tree.join(above.parent)
        tree.join(node)
        if self.max_blocks is not None:
            tree.evict(self.max_blocks)

    def match(self, tokens: Integers) -> list[int]:
        """Return the newest offer of each leading block, up to the first block without an offer, in block order.

        Of the empty tenant only; else use `match_arrays`. Raises TokenError. Cost: O(tokens matched) by memcmp, one int
        made per block, and about 2 us a node; a list of tokens costs about 10 ns a token more.
        """
        found: list[int] = []
        for node, blocks in self._walk(as_tokens(tokens)):
            found += node.offers[0, :blocks].tolist()
        return found

    def match_all(self, tokens: Integers) -> list[tuple[int, ...]]:
        """Return all offers of each leading block, newest first, up to the first block without one.

        Of the empty tenant only; else use `match_arrays`. Raises TokenError. Cost: as `match`, and O(offers).
        """
        found: list[tuple[int, ...]] = []
        for node, blocks in self._walk(as_tokens(tokens)):
            found += _columns(node.offers[:, :blocks])
        return found

    def match_arrays(
        self, tokens: Integers, first: int = 0, *, holes: bool = False, tenant: bytes = b""
    ) -> Iterator[Int64s]:
        """Yield the offers of the leading blocks from block `first` on, up to the first block without an offer.

        With `holes`, up to the last stored block of the prefix. In block order, as int64 arrays (rows, blocks): row 0
        the newest offer of each block, -1 for no offer. They are views: do not write to them, nor change the trie
        meanwhile. Raises TokenError. Cost: O(tokens matched) by memcmp, and about 2 us for each array.
        """
        for node, blocks in self._walk(as_tokens(tokens), holes, tenant):
            if first < blocks:
                yield node.offers[:, first:blocks]
            first = max(0, first - blocks)

    def remove(self, offers: Iterable[int]) -> int:
        """Remove these offers; return how many were found. Unknown offers are ignored.

        A block without offers stays as a hole while blocks continue it.

        Raises MisuseError for values that cannot be offers. Cost: O(offers given), and O(tokens) of each node (at most
        NODE_BLOCKS blocks) that held one; about half if one node held them all.
        """
        return self._tree.remove(as_offers(offers))

    def expect(self, first: int, count: int) -> None:
        """Announce offers `first` .. `first + count`, so that the index need not grow step by step."""
        self._tree.index.expect(first, count)

    def forget(self, first: int, count: int) -> None:
        """Free the index memory of offers `first` .. `first + count`.

        None of them may be on a block, nor any other offer of the same page (with the same `offer >> PAGE_BITS`, see
        offer_index.py).
        """
        self._tree.index.forget(first, count)

    def items(self) -> Iterator[tuple[Int32s, list[tuple[int, ...]]]]:
        """Yield (tokens, offers) for runs of blocks without holes, each block once, of all tenants.

        tokens: the whole prefix up to the run's end, int32, read-only. offers: all offers, newest first, of each of its
        last `len(offers)` blocks. A run comes after the runs that it continues. Cost: O(nodes + blocks), and O(tokens
        of the prefix) for each run: for checks and small tries; else see `cursor`.

        >>> trie = PrefixTrie(block_size=2)
        >>> trie.insert([1, 2, 3, 4], offers=[10, 11])
        >>> [(tokens.tolist(), offers) for tokens, offers in trie.items()]
        [([1, 2, 3, 4], [(10,), (11,)])]
        """
        cursor = self.cursor()
        while (visit := cursor.next()) is not None:
            data = visit.path() + visit.tokens
            edges = np.flatnonzero(np.diff(visit.offers[0] >= 0, prepend=False, append=False)).tolist()
            for start, end in zip(edges[::2], edges[1::2], strict=True):
                tokens = np.frombuffer(data, np.int32, (visit.depth + end) * self.block_size)
                yield tokens, _columns(visit.offers[:, start:end])

    def _walk(self, tokens: Int32s, holes: bool = False, tenant: bytes = b"") -> Iterator[tuple[Node, int]]:
        """Yield each node along `tokens`, with the number of its leading blocks that match and have offers; stamp them.

        With `holes`, blocks without offers count too.
        """
        tree, size = self._tree, self.block_size
        tree.clock += 1
        children, at = tree.root.children, 0
        while children and at + size <= tokens.size:
            key = tokens[at : at + size].tobytes()
            node = children.get(key if at else tenant + key)
            if node is None:
                return
            blocks = node.reach(tokens, at)
            blocks = blocks if holes else node.leading(blocks)
            if node.stamps is not None:
                node.stamps[:blocks] = tree.clock
            yield node, blocks
            if blocks < node.size:
                return
            at += blocks * size
            children = node.children

    def _check(self) -> None:
        """Assert every invariant; dumps the trie when one is broken. Cost: O(everything), in Python. For tests."""
        check(self._tree)
        assert self.max_blocks is None or self._tree.stored <= self.max_blocks, "no more blocks than allowed"


def _columns(offers: Int64s) -> list[tuple[int, ...]]:
    """Return the offers of each block, newest first."""
    if len(offers) == 1:
        return [(offer,) for offer in offers[0].tolist()]
    return [tuple(offer for offer in column if offer >= 0) for column in offers.T.tolist()]
