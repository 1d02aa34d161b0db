"""What may be loaded that is refused otherwise; light, so that the command line can name it."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Loading:
    """The options of `load_model` on what is let in, and on which model it is.

    `adapter` is a folder of peft that is merged into the weights, `revision` that of a hub id.
    """

    allow_partial: bool = False
    trust_remote_code: bool = False
    merge_adapter: bool = False
    verify: bool = True
    adapter: str | None = None
    revision: str | None = None

    def of_another(self) -> "Loading":
        """The same for a second model: without what belongs to the first alone."""
        return replace(self, adapter=None, revision=None)


STRICT = Loading()
