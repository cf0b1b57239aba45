"""What an object can do beyond its base class, asked in one way."""

from __future__ import annotations

from typing import TypeVar

from typing_extensions import TypeIs

C = TypeVar("C")


def supports(subject: object, capability: type[C]) -> TypeIs[C]:
    """Whether an object has a capability, a runtime-checkable `Protocol`.

    Its class has the methods, and the object does not take the capability back: one whose class can do more than its
    parts allow names what it cannot do in an attribute `unsupported`, a set of protocols.
    """
    return isinstance(subject, capability) and capability not in getattr(subject, "unsupported", ())
