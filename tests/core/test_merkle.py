"""The tree hash of RFC 6962, beside its definition written down as a recursion, and proofs of every leaf."""

from __future__ import annotations

from hashlib import sha256

import pytest

from touchstone.merkle import Frontier, inclusion_path, leaf_hash, node_hash, tree_root, verify_inclusion

SIZES = range(1, 41)


def leaves(size: int) -> list[bytes]:
    return [b"leaf %d" % number for number in range(size)]


def defined_root(encodings: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, as it is written there."""
    if not encodings:
        return sha256(b"").digest()
    if len(encodings) == 1:
        return sha256(b"\x00" + encodings[0]).digest()
    split = 1 << ((len(encodings) - 1).bit_length() - 1)
    return sha256(b"\x01" + defined_root(encodings[:split]) + defined_root(encodings[split:])).digest()


def test_the_root_is_the_one_that_is_defined() -> None:
    for size in (0, *SIZES, 1000):
        assert tree_root(leaves(size)) == defined_root(leaves(size))


def test_a_known_root_of_the_published_test_vectors() -> None:
    """The eight entries with which Certificate Transparency logs are tested."""
    entries = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    root = tree_root(bytes.fromhex(entry) for entry in entries)
    assert root.hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


def test_every_leaf_of_every_small_tree_is_proved_and_no_other_leaf_is() -> None:
    for size in SIZES:
        all_leaves = leaves(size)
        root = tree_root(all_leaves)
        for index, leaf in enumerate(all_leaves):
            path = inclusion_path(all_leaves, index)
            assert verify_inclusion(leaf, index, size, path, root)
            assert not verify_inclusion(leaf + b"!", index, size, path, root)
            for other in range(size):
                if other != index:
                    assert not verify_inclusion(all_leaves[other], index, size, path, root)
                    assert not verify_inclusion(leaf, other, size, path, root)


def test_a_path_that_is_longer_shorter_changed_or_for_another_size_proves_nothing() -> None:
    for size in SIZES:
        all_leaves = leaves(size)
        root = tree_root(all_leaves)
        for index, leaf in enumerate(all_leaves):
            path = inclusion_path(all_leaves, index)
            assert not verify_inclusion(leaf, index, size, [*path, root], root)
            assert not verify_inclusion(leaf, index, index, path, root)
            if path:
                assert not verify_inclusion(leaf, index, size, path[:-1], root)
                assert not verify_inclusion(leaf, index, size, [path[0][::-1], *path[1:]], root)


def test_an_inner_node_cannot_pass_for_a_leaf() -> None:
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert leaf_hash(left + right) != node_hash(left, right)
    assert not verify_inclusion(left + right, 0, 1, [], tree_root([b"a", b"b"]))


def test_a_frontier_goes_on_where_it_was_kept() -> None:
    for size in SIZES:
        first = Frontier()
        for leaf in leaves(size // 2):
            first.add(leaf)
        later = Frontier(first.size, first.roots)
        for leaf in leaves(size)[size // 2 :]:
            later.add(leaf)
        assert later.root() == tree_root(leaves(size))
        assert first.root() == tree_root(leaves(size // 2))
    with pytest.raises(ValueError, match="a tree of 3 leaves has 2 complete subtrees, not 1"):
        Frontier(3, [b"x"])


def test_there_is_no_proof_of_a_leaf_that_is_not_there() -> None:
    with pytest.raises(IndexError, match="leaf 3 of 3"):
        inclusion_path(leaves(3), 3)
