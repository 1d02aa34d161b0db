"""What may be loaded that is refused otherwise; light, so that the command line can name it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Loading:
    """The options of `load_model` that let something in."""

    allow_partial: bool = False
    trust_remote_code: bool = False
    merge_adapter: bool = False
    verify: bool = True


STRICT = Loading()
