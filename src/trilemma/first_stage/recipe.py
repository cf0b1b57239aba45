"""The recipe of a folder of codes, and the record of it beside each shard until the folder is complete."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from trilemma.data.codes import read_folder
from trilemma.errors import UserError

RECORD = ".json"  # suffix to a shard's name


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the content of a shard.

    Attributes:
        codec: Its hash.
        data: The data set's fingerprint.
        flip: Whether training images are encoded mirrored, too.
        batch_size: Images that are encoded together: sums in another order round otherwise.
        shard_size: Images in a shard.
    """

    codec: str
    data: str
    flip: bool
    batch_size: int
    shard_size: int


def recipe_in(folder: Path) -> Recipe | None:
    """Read the recipe of the codes in a folder, finished or not; None where there are none.

    Raises:
        UserError: If its description is damaged.
    """
    complete = read_folder(folder)
    if complete is not None:
        meta = complete.meta
        return Recipe(
            codec=meta["codec"]["hash"],
            data=meta["data"]["fingerprint"],
            **{key: meta[key] for key in ("flip", "batch_size", "shard_size")},
        )
    for sidecar in sorted(folder.glob("*.npy" + RECORD)):
        record = read_record(sidecar.with_suffix(""))
        if record is not None:
            return Recipe(**record["recipe"])
    return None


def check_same(folder: Path, begun: Recipe, wanted: Recipe) -> None:
    """Refuse to continue in a folder that was begun with another recipe.

    Raises:
        UserError: It says what differs.
    """
    if begun == wanted:
        return
    if begun.codec != wanted.codec:
        what = f"codes by another codec (hash {begun.codec}, and this one's is {wanted.codec})"
    elif begun.data != wanted.data:
        what = f"codes of other data (fingerprint {begun.data[:16]}, and this one's is {wanted.data[:16]})"
    elif begun.flip != wanted.flip:
        what = f"codes made with data.flip={str(begun.flip).lower()}"
    else:
        raise UserError(
            f"{folder} was begun with batch_size={begun.batch_size} shard_size={begun.shard_size}: leave both out to go on with "
            "it, or take another output_dir"
        )
    raise UserError(f"{folder} holds {what}: take another output_dir, or delete the folder")


def read_record(path: Path) -> dict[str, Any] | None:
    """Read the record of a shard, {"sha256", "recipe"}; None where there is none, or a damaged one."""
    try:
        record = json.loads(path.with_name(path.name + RECORD).read_text())
        known = record["recipe"].keys() == {field.name for field in fields(Recipe)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if known and isinstance(record.get("sha256"), str) else None
