"""What the card beside a TorchScript file says: how images enter its network and where features come out."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Literal, get_args

Input = Literal["uint8", "float32"]


@dataclass(frozen=True, kw_only=True)
class ScriptCard:
    """How a network in a TorchScript file is to be called.

    Attributes:
        channels: Channels C that it reads; a grey image is repeated to three.
        resize: Height and width it reads; None passes images at their native size. Resizing is bicubic with
            antialiasing, without which a distance is off by more than models differ (Parmar et al. 2022,
            arXiv:2104.11222).
        quantise: Round and clip resized pixels to the levels 0..255 (clean-fid leaves them as they are).
        input: Type of its input. "uint8" passes levels 0..255 and allows no `mean` or `std`.
        range: What levels 0 and 255 become, before `mean` and `std`.
        mean: Subtracted, one a channel.
        std: Divided by, one a channel.
        arguments: Keyword arguments of each call, plain values.
        features: Where the features [N, d] are in its output: a position in a tuple, a key in a dict, or None where
            the output is the features.
        logits: The same for logits [N, K]; None where it has none, and the metrics over classes are left out.
        label_names: Names of its K classes; needed with `logits`.
    """

    channels: int = 3
    resize: int | None = None
    quantise: bool = True
    input: Input = "float32"
    range: tuple[float, float] = (-1.0, 1.0)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    features: int | str | None = None
    logits: int | str | None = None
    label_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"channels={self.channels}: images have 1 or 3")
        if self.resize is not None and self.resize < 1:
            raise ValueError(f"resize={self.resize} must be at least 1, or null")
        if self.input not in get_args(Input):
            raise ValueError(f"input={self.input!r}: choose one of {', '.join(get_args(Input))}")
        if len(self.range) != 2 or self.range[0] == self.range[1]:
            raise ValueError(f"range={list(self.range)}: give what levels 0 and 255 become, as [-1, 1]")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.channels:
                raise ValueError(f"{name} has {len(values)} values for {self.channels} channels")
        if self.std is not None and not all(value > 0 for value in self.std):
            raise ValueError("std must be above 0")
        if self.input == "uint8" and not (self.mean is self.std is None and tuple(self.range) == (0, 255)):
            raise ValueError('input="uint8" passes the levels as they are: it takes range [0, 255] and no mean or std')
        if self.input == "uint8" and not self.quantise:
            raise ValueError('input="uint8" needs quantise=true')
        if (self.logits is None) != (not self.label_names):
            raise ValueError("logits and label_names belong together: give both, or neither")

    @staticmethod
    def from_json(text: str) -> ScriptCard:
        """Card of a JSON object; what it leaves out has its default.

        Raises:
            ValueError: If it is no object, or a field is unknown or of the wrong kind.
        """
        given = json.loads(text)
        if not isinstance(given, dict):
            raise ValueError("it must be a JSON object, {} at least")
        names = [f.name for f in fields(ScriptCard)]
        for name, value in given.items():
            if name not in names:
                near = get_close_matches(name, names, 1)
                raise ValueError(f"unknown field {name}: " + (f"did you mean {near[0]}?" if near else ", ".join(names)))
            if not _fits(name, value):
                raise ValueError(f"{name}={json.dumps(value)} is of the wrong kind")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
        return ScriptCard(**values)

    def identity(self) -> str:
        """JSON of what differs from the defaults: equal for cards that mean the same."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != _default(f)}
        return json.dumps(changed, sort_keys=True)


def _default(of: Any) -> Any:
    return of.default_factory() if of.default is MISSING else of.default


def _fits(name: str, value: Any) -> bool:
    """Whether a JSON value is of the kind that the field takes."""
    if name in ("features", "logits"):
        return value is None or isinstance(value, str) or _is_int(value)
    if name in ("range", "mean", "std"):
        return (value is None and name != "range") or _is_list(value, float, int)
    if name == "label_names":
        return _is_list(value, str)
    if name == "resize":
        return value is None or _is_int(value)
    if name == "channels":
        return _is_int(value)
    return isinstance(value, {"quantise": bool, "input": str, "arguments": dict}[name])


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(value: Any, *kinds: type) -> bool:
    return isinstance(value, list) and all(isinstance(v, kinds) and not isinstance(v, bool) for v in value)
