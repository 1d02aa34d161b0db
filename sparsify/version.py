"""The version of this package, as it was installed."""

from importlib.metadata import PackageNotFoundError, version


def installed() -> str:
    """The version in the package's metadata; `unknown` in a checkout that was never installed."""
    try:
        return version("sparsify-fx")
    except PackageNotFoundError:
        return "unknown"
