"""A data set's codes, computed once and kept."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from trilemma.atomic import atomic_write
from trilemma.codecs.base import Codec, flatten
from trilemma.data.base import ImageData
from trilemma.data.images import to_float
from trilemma.data.split import MappedImages


def codec_hash(codec: Codec) -> str:
    """Content hash of a codec's weights and of nothing else, sixteen hexadecimal digits.

    The units of its codes, which are measured on what is cached, do not count.
    """
    digest = hashlib.sha256()
    weights = {name: tensor for name, tensor in codec.state_dict().items() if name not in ("shift", "scale")}
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def cached_codes(codec: Codec, data: ImageData, cache_dir: Path, *, batch_size: int = 256) -> dict[str, Tensor]:
    """What the codec caches of the training and validation splits; with [2, ...] in front for training images that are mirrored.

    Tokens are int64 [N, L]; a continuous codec's are float32 [N, ...], see `Codec.cache`.

    Kept under `cache_dir` by the hashes of codec and data; a file that cannot be read is made again.
    """
    path = cache_dir / "codes" / f"{data.fingerprint[:16]}-{codec_hash(codec)}{'-flip' if data.flip else ''}.pt"
    if path.is_file():
        try:
            codes: dict[str, Tensor] = torch.load(path, weights_only=True)
            return {name: value if value.is_floating_point() else value.long() for name, value in codes.items()}
        except Exception:
            print(f"warning: the code cache {path} is damaged; it is made again")
    codes = {
        name: _encode(codec, data.split(name).images, data.flip and name == "train", batch_size, name)
        for name in ("train", "val")
    }
    kept = torch.float32
    if codec.num_classes is not None:
        kept = torch.uint8 if codec.num_classes <= 256 else torch.int32
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as handle:
        torch.save({name: value.to(kept) for name, value in codes.items()}, handle)
    return codes


@torch.no_grad()
def _encode(codec: Codec, images: Tensor | MappedImages, flip: bool, batch_size: int, name: str) -> Tensor:
    versions: list[list[Tensor]] = [[], []] if flip else [[]]
    for start in track(range(0, len(images), batch_size), description=f"Encoding {name} images", transient=True):
        batch = to_float(images[start : start + batch_size])
        versions[0].append(codec.cache(batch))
        if flip:
            versions[1].append(codec.cache(batch.flip(3)))
    parts = [torch.cat(v) for v in versions]
    if codec.num_classes is not None:
        parts = [flatten(part) for part in parts]
    return torch.stack(parts) if flip else parts[0]
