"""Samplers and guidance as a user names them: by an option of the command line, by a number, by single settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from trilemma.config.build import build
from trilemma.config.small_options import group_nodes
from trilemma.errors import UserError
from trilemma.samplers.base import Sampler
from trilemma.samplers.guidance import ClassifierFree, Guidance


def as_sampler(asked: Sampler | str | None, own: Sampler | None, settings: Mapping[str, Any]) -> Sampler | None:
    """Give the sampler that is asked for.

    Args:
        asked: A sampler, an option of `sampler=` (`"ddim"`), or None for a model's own.
        own: The model's own.
        settings: Settings that are changed, such as `num_steps`.

    Raises:
        UserError: If there is no such option or setting, or there is nothing to change.
    """
    if isinstance(asked, str):
        nodes = group_nodes("sampler")
        if asked not in nodes:
            near = get_close_matches(asked, nodes, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(f"sampler={asked!r}: {hint}choose one of {', '.join(nodes)}")
        base: Sampler | None = build(nodes[asked], where=f"sampler {asked}")
    else:
        base = asked or own
    if not settings:
        return base
    if base is None:
        raise UserError(f"{next(iter(settings))}: the model draws images in a single call and has no sampler to set")
    known = inspect.signature(type(base)).parameters
    if unknown := [key for key in settings if key not in known]:
        raise UserError(f"sampler {type(base).__name__} has no setting {unknown[0]}; it has {', '.join(known)}")
    return type(base)(**{key: getattr(base, key) for key in known} | dict(settings))


def as_guidance(asked: Guidance | float | None, own: Guidance) -> Guidance:
    """Give the guidance that is asked for; a number is the scale of a classifier-free one, in the interval of the model's own."""
    if asked is None or isinstance(asked, Guidance):
        return asked or own
    interval = (own.start, own.stop) if isinstance(own, ClassifierFree) else ()
    return ClassifierFree(float(asked), *interval)
