"""Merkle tree hash of RFC 6962 over leaf encodings: one root for a whole log, and short proofs that a leaf is in it.

A leaf is hashed behind a 0x00 byte and an inner node behind a 0x01 byte, so that neither can pass for the other. A
tree of n leaves splits at the largest power of two below n.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256


def leaf_hash(encoded: bytes) -> bytes:
    return sha256(b"\x00" + encoded).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


class Frontier:
    """The roots of the complete subtrees so far, largest first: all that adding leaves and telling the root need."""

    def __init__(self, size: int = 0, roots: Iterable[bytes] = ()) -> None:
        self.size = size
        self.roots = list(roots)
        if len(self.roots) != size.bit_count():
            raise ValueError(f"a tree of {size} leaves has {size.bit_count()} complete subtrees, not {len(self.roots)}")

    def add(self, encoded: bytes) -> None:
        """Append one leaf: as many merges as the old size has trailing ones, one on average."""
        node, size, roots = sha256(b"\x00" + encoded).digest(), self.size, self.roots
        while size & 1:
            node = sha256(b"\x01" + roots.pop() + node).digest()
            size >>= 1
        roots.append(node)
        self.size += 1

    def root(self) -> bytes:
        """The tree hash; of no leaves it is the hash of nothing."""
        if not self.roots:
            return sha256().digest()
        node = self.roots[-1]
        for left in reversed(self.roots[:-1]):
            node = node_hash(left, node)
        return node


def tree_root(leaves: Iterable[bytes]) -> bytes:
    """Root over leaf encodings, in one pass."""
    frontier = Frontier()
    for encoded in leaves:
        frontier.add(encoded)
    return frontier.root()


def inclusion_path(leaves: Iterable[bytes], index: int) -> list[bytes]:
    """The siblings from leaf `index` (from 0) up to the root. Raises IndexError when there is no such leaf."""
    level = [leaf_hash(encoded) for encoded in leaves]
    if not 0 <= index < len(level):
        raise IndexError(f"leaf {index} of {len(level)}")
    path: list[bytes] = []
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):  # else the node is the last of an odd level, and rises as it is
            path.append(level[sibling])
        paired = [node_hash(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
        level, index = paired + level[len(level) & ~1 :], index >> 1
    return path


def root_from_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """The root that a leaf hash at `index` of `size` leaves has by this path; None when the path has another length."""
    if not 0 <= index < size:
        return None
    node, last, left = leaf, size - 1, list(reversed(path))
    while last:
        if index & 1 or index < last:
            if not left:
                return None
            sibling = left.pop()
            node = node_hash(sibling, node) if index & 1 else node_hash(node, sibling)
        index, last = index >> 1, last >> 1
    return None if left else node


def verify_inclusion(encoded: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Is the leaf with this encoding at `index` (from 0) of the `size` leaves that have this root?"""
    return root_from_path(leaf_hash(encoded), index, size, path) == root
