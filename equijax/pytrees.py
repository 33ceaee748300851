"""Parameters by name: '/'-joined paths of a pytree's leaves, patterns on them, labels, a digest."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from equijax.errors import InputError


def paths_of(tree: Any) -> dict[str, jax.Array]:
    """Leaves of a nested dict (or any pytree) by their '/'-joined path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}


def path_name(path: Sequence[Any]) -> str:
    """'/'-joined names of a JAX key path."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def matches(pattern: str, path: str) -> bool:
    """Whether a regular expression matches the whole path or a leading part of it that ends at a '/'."""
    return re.fullmatch(rf"(?:{pattern})(?:/.*)?", path) is not None


def select(paths: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Paths that at least one pattern matches, in the order of `paths`.

    Raises:
      InputError: patterns that match nothing, all of them named, with the paths there are.
    """
    paths, patterns = list(paths), list(patterns)
    idle = [p for p in patterns if not any(matches(p, path) for path in paths)]
    if idle:
        raise InputError(f"patterns that match no parameter: {', '.join(map(repr, idle))}; there are {listing(paths)}")
    return [path for path in paths if any(matches(p, path) for p in patterns)]


def labels(params: Any, rules: Mapping[str, str] | Iterable[tuple[str, str]]) -> Any:
    """A tree of labels for `optax.multi_transform`: every leaf takes the label of the one pattern that matches it.

    Args:
      params: any pytree.
      rules: pattern -> label, as a mapping or as pairs.

    Returns:
      the tree with each leaf replaced by its label.

    Raises:
      InputError: a leaf that no rule or more than one matches, or a rule that matches no leaf.
    """
    pairs: list[tuple[str, str]] = list(rules.items() if isinstance(rules, Mapping) else rules)  # type: ignore
    select(paths_of(params), [pattern for pattern, _ in pairs])

    def label(path: Sequence[Any], _: object) -> str:
        name = path_name(path)
        hits = [(pattern, result) for pattern, result in pairs if matches(pattern, name)]
        if len(hits) != 1:
            found = "no rule" if not hits else f"{len(hits)} rules ({', '.join(repr(p) for p, _ in hits)})"
            raise InputError(f"parameter {name} matches {found}; it must match exactly one")
        return hits[0][1]

    return jax.tree_util.tree_map_with_path(label, params)


def freeze_labels(params: Any, frozen: Iterable[str]) -> Any:
    """Labels "frozen" for leaves that a pattern matches and "trainable" for the rest.

    Raises:
      InputError: a pattern that matches nothing, or nothing left to train.
    """
    chosen = set(select(paths_of(params), frozen))
    if len(chosen) == len(paths_of(params)):
        raise InputError(f"the patterns {list(frozen)} freeze every parameter: nothing is left to train")
    return jax.tree_util.tree_map_with_path(lambda p, _: "frozen" if path_name(p) in chosen else "trainable", params)


def sha256(variables: dict) -> str:
    """Digest of the arrays alone: path, dtype, shape and bytes of each, parameters and constants alike."""
    digest = hashlib.sha256()
    for path, leaf in sorted(paths_of(variables).items()):
        x = np.ascontiguousarray(leaf)
        digest.update(f"{path} {x.dtype.str} {x.shape}\n".encode())
        digest.update(x.tobytes())
    return digest.hexdigest()


def listing(paths: Iterable[str]) -> str:
    """The first few of `paths`, and how many more there are."""
    paths = list(paths)
    return ", ".join(paths[:8]) + (f" and {len(paths) - 8} more" if len(paths) > 8 else "")
