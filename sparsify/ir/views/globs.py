"""Globs for weights: what matches, and what is meant."""

import fnmatch

from sparsify.errors import OptionError

_WILD = frozenset("*?[")


def matches(path: str, glob: str) -> bool:
    """Whether a glob means a weight by its path, with `.weight` at its end or without."""
    return fnmatch.fnmatchcase(path, glob) or fnmatch.fnmatchcase(
        path.removesuffix(".weight"), glob
    )


def meant(glob: str, paths: set[str], heads: set[str], added: set[str]) -> set[str]:
    """The weights of `paths` that a glob takes: all it matches without wildcards, or if it is for added ones.

    Otherwise neither heads nor what passes have added; OptionError when it matches heads alone.
    """
    found = {path for path in paths if matches(path, glob)}
    if not _WILD.intersection(glob) or found <= added:
        return found
    if found <= heads and glob.strip("*"):
        raise OptionError(
            f"the target '{glob}' matches nothing but the output head; name it without wildcards: "
            f"{', '.join(sorted(found))}"
        )
    return found - heads - added
