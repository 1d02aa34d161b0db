"""Options: frozen dataclasses that print themselves as text and are bound from it by their field types."""

import dataclasses
import math
import types
from collections.abc import Iterable, Iterator
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Self,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from sparsify.errors import OptionError, nearest, shortened
from sparsify.text.syntax import Call

# No size, count or number of steps that is meant is larger.
MOST = 10_000_000


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Says of an option of words, `Annotated[str, OneOf(names)]`, which ones it takes."""

    names: tuple[str, ...]


class Options:
    """Base of passes, exporters and their parts; `name` is the word in text, fields are the options."""

    name: ClassVar[str]

    def __str__(self) -> str:
        """`name{field=value ...}`, fields at their defaults left out; `bind` is the inverse."""
        parts = [
            f"{item.name}={_print(getattr(self, item.name))}"
            for item in dataclasses.fields(self)  # type: ignore[arg-type]
            if getattr(self, item.name) != _default(item)
        ]
        return f"{self.name}{{{' '.join(parts)}}}" if parts else self.name

    @classmethod
    def bind(cls, call: Call) -> Self:
        """An instance from parsed text.

        Raises OptionError for an unknown option (with the nearest one), a missing one, or a value of
        another type.
        """
        hints = get_type_hints(cls, include_extras=True)
        items = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for key in call.options:
            if key not in items:
                raise unknown_option(cls.name, key, items)
        missing = [name for name in required(cls) if name not in call.options]
        if missing:
            raise missing_option(cls.name, missing[0])
        values = {
            key: _convert(f"{cls.name}{{{key}}}", raw, hints[key])
            for key, raw in call.options.items()
        }
        made = cls(**values)
        refuse_unbounded(made)
        return made


def unknown_option(name: str, key: str, known: Iterable[str]) -> OptionError:
    """The error for an option that a pass has not, with the nearest one."""
    return OptionError(f"'{name}' has no option '{key}'{nearest(key, known)}")


def missing_option(name: str, key: str) -> OptionError:
    """The error for an option that has no default and was not given."""
    return OptionError(f"'{name}' needs the option '{key}'")


def refuse_unbounded(options: Options) -> None:
    """Refuse NaN, infinities and whole numbers beyond `MOST`, in the parts of options too; OptionError."""
    for where, value, _ in _numbers(options):
        if not math.isfinite(value):
            raise OptionError(f"{where}={value}}} is no finite number")
        if abs(value) > MOST and isinstance(value, int):
            raise OptionError(f"{where}={value}}} is more than {MOST:,}")


def refuse_negative(options: Options) -> None:
    """Refuse numbers below 0 and whole ones below 1, in the parts of options too; OptionError."""
    for where, value, whole in _numbers(options):
        if value < 0 or (whole and value < 1):
            raise OptionError(f"{where}={value}}} must be at least {int(whole)}")


def _numbers(options: Options) -> Iterator[tuple[str, float, bool]]:
    """Every number among options: how it is written up to its value, the value, whether it is whole."""
    hints = get_type_hints(type(options))
    for item in dataclasses.fields(options):  # type: ignore[arg-type]
        value, kind = getattr(options, item.name), hints[item.name]
        if isinstance(value, Options):
            yield from _numbers(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            whole = int in (kind, *get_args(kind))
            yield f"{options.name}{{{item.name}", value, whole


def describe_type(kind: Any) -> str:
    """A field type as a reader sees it: `int`, `true|false`, `kl|none`, `word,word,...`."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is bool:
        return "true|false"
    if kind is type(None):
        return "none"
    if origin in (Literal, Annotated):
        return "|".join(str(a) for a in words_of(kind))
    if origin in (Union, types.UnionType):
        return "|".join(describe_type(a) for a in args)
    if origin is tuple:
        return f"{describe_type(args[0])},..."
    if isinstance(kind, type) and issubclass(kind, Options):
        return f"{kind.name}{{}}"
    return {str: "word"}.get(kind, getattr(kind, "__name__", str(kind)))


def words_of(kind: Any) -> tuple[Any, ...]:
    """The words that an option of a closed set takes."""
    args = get_args(kind)
    if get_origin(kind) is not Annotated:
        return args
    (found,) = (extra for extra in args[1:] if isinstance(extra, OneOf))
    return found.names


def _default(item: Any) -> Any:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default


def one_option(kind: type[Options]) -> Iterator[tuple[str, Any]]:
    """Every option of a closed set of words with each of its words, a list of words with one of them."""
    hints = get_type_hints(kind, include_extras=True)
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]
        several = get_origin(hints[item.name]) is tuple
        inner = get_args(hints[item.name])[0] if several else hints[item.name]
        if get_origin(inner) in (Literal, Annotated):
            yield from ((item.name, (word,) if several else word) for word in words_of(inner))


def required(kind: type[Options]) -> list[str]:
    """The options of a kind that have no default."""
    return [f.name for f in dataclasses.fields(kind) if _is_required(f)]  # type: ignore[arg-type]


def _is_required(item: Any) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _print(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(_print(item) for item in value)
    return repr(value) if isinstance(value, float) else str(value)


def _convert(where: str, raw: tuple[Call, ...], kind: Any) -> Any:
    if get_origin(kind) is tuple:
        return tuple(_single(where, call, get_args(kind)[0]) for call in raw)
    if len(raw) != 1:
        raise OptionError(f"{where} takes one value, not {len(raw)}")
    return _single(where, raw[0], kind)


def _single(where: str, call: Call, kind: Any) -> Any:
    choices = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    for choice in choices:
        if isinstance(choice, type) and issubclass(choice, Options) and call.name == choice.name:
            return choice.bind(call)
    if not call.braced:
        for choice in choices:
            found, value = _scalar(call.name, choice)
            if found:
                return value
    shown = shortened(call.name) + ("{...}" if call.braced else "")
    raise OptionError(f"{where} cannot be '{shown}'; it takes {describe_type(kind)}")


def _scalar(word: str, kind: Any) -> tuple[bool, Any]:
    """Whether a word reads as a value of a type, and the value."""
    if kind is type(None):
        return word == "none", None
    if kind is bool:
        return word in ("true", "false"), word == "true"
    if get_origin(kind) in (Literal, Annotated):
        return word in words_of(kind), word
    if kind in (int, float):
        try:
            return True, kind(word)
        except ValueError:
            return False, None
    return kind is str, word
