"""Any network as a feature extractor: a TorchScript file (Inception, DINOv2, ...) with a card beside it.

`extractor=DIR/inception.pt` reads `DIR/inception.pt.json`, which says how images enter and where the features come out:

    {"input": "uint8", "range": [0, 255], "arguments": {"return_features": true}}
        `inception-2015-12-05.pt` of the authors of StyleGAN, which resizes inside
    {"resize": 224, "range": [0, 1], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
        DINOv2, exported with torch.jit.trace(model.eval(), torch.zeros(1, 3, 224, 224)).save("dinov2.pt")

A card may also name `features` and `logits` (the position or key of each in what the network returns) and `label_names`.
TorchScript runs the code that the file holds: name only files that you trust. A checkpoint or a configuration out of one
can never name such a file.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.jit._fuser import optimized_execution

from trilemma.errors import UserError
from trilemma.evaluation.features.base import Embedding, Extractor, Images
from trilemma.evaluation.features.script_card import ScriptCard

SUFFIXES = (".pt", ".pth", ".ts", ".jit", ".torchscript")
BATCH_SIZE = 50


class ScriptExtractor(Extractor):
    """A TorchScript network, frozen.

    Args:
        module: The network, as `torch.jit.load` gives it.
        card: How it is called.
        name: `<stem>-<sha8 of file and card>`.
        device: Where it runs.
        batch_size: Images at a time.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        card: ScriptCard,
        *,
        name: str,
        device: torch.device | str = "cpu",
        batch_size: int = BATCH_SIZE,
    ) -> None:
        super().__init__(name=name, label_names=card.label_names, device=device, batch_size=batch_size)
        self.module = module.to(device).eval()
        self.card = card

    def check(self, images: Images) -> None:
        """Raise `UserError` unless the images have as many channels as it reads, or one to repeat."""
        channels = images.shape[1]
        if channels not in (1, self.card.channels):
            raise UserError(
                f"extractor {self.name} reads images of {self.card.channels} channel(s), got {list(images.shape)}: "
                "set channels in its card, or name another extractor"
            )

    def prepare(self, batch: Tensor) -> Tensor:
        """The network's input [B, channels, h, w] for a batch, uint8 [B, C, H, W]."""
        card = self.card
        x = batch.expand(-1, card.channels, -1, -1)
        if card.resize is not None and tuple(x.shape[2:]) != (card.resize, card.resize):
            x = F.interpolate(x.float(), size=(card.resize, card.resize), mode="bicubic", antialias=True)
            x = x.round().clamp(0, 255) if card.quantise else x
        if card.input == "uint8":
            return x.to(torch.uint8)
        low, high = card.range
        x = x.float() * ((high - low) / 255) + low
        if card.mean is not None:
            x = x - x.new_tensor(card.mean).view(1, -1, 1, 1)
        if card.std is not None:
            x = x / x.new_tensor(card.std).view(1, -1, 1, 1)
        return x

    def see(self, batch: Tensor) -> Embedding:
        """Features [B, d], and logits [B, K] where the card says where they are, of a batch, uint8 [B, C, H, W].

        Raises:
            UserError: If the network fails on it, or gives no such output.
        """
        self.module.eval()
        try:
            # Unoptimised: the executor fuses after its first calls, and the rounding of features would change with it.
            with optimized_execution(False):
                output = self.module(self.prepare(batch), **self.card.arguments)
        except (torch.jit.Error, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"extractor {self.name} cannot read {list(batch.shape)}: {reason}; fix its card") from error
        features = self._pick(output, self.card.features, "features", len(batch))
        if self.card.logits is None:
            return Embedding(features, None)
        logits = self._pick(output, self.card.logits, "logits", len(batch))
        if logits.shape[1] != self.num_classes:
            raise UserError(
                f"extractor {self.name} gives {logits.shape[1]} logits for {self.num_classes} label_names: fix its card"
            )
        return Embedding(features, logits)

    def _pick(self, output: Any, where: int | str | None, what: str, num: int) -> Tensor:
        found = output
        if where is not None:
            try:
                found = output[where]
            except (KeyError, IndexError, TypeError):
                raise UserError(
                    f"extractor {self.name} gives no {what} at {where!r}, but {_described(output)}: fix its card"
                ) from None
        if isinstance(found, Tensor) and found.ndim > 2 and found.numel() == found.shape[0] * found.shape[1]:
            found = found.flatten(1)  # pooled to one pixel
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != num or not found.is_floating_point():
            raise UserError(
                f"extractor {self.name} gives {_described(found)} where {what} [{num}, d] are to be: name their "
                f'position or key in its card, as "{what}": 0'
            )
        return found


def load_script(path: Path, *, device: torch.device | str = "cpu") -> ScriptExtractor:
    """Load a TorchScript file, which runs its code, and the card `<file>.json` beside it.

    Raises:
        UserError: If one is missing, or not what it should be.
    """
    card_path = path.with_name(f"{path.name}.json")
    try:
        digest = hashlib.sha256(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read the extractor {path}: {error.strerror or error}; check the path") from error
    try:
        card = ScriptCard.from_json(card_path.read_text())
    except OSError as error:
        raise UserError(
            f"cannot read the card {card_path}: {error.strerror or error}; write one that says how images enter, "
            'such as {"resize": 299, "range": [-1, 1], "features": null}'
        ) from error
    except ValueError as error:
        raise UserError(f"the card {card_path} cannot be used: {error}") from error
    digest.update(card.identity().encode())
    try:
        with warnings.catch_warnings():
            # The format in which these networks are passed on; torch.export has no such files about yet.
            warnings.filterwarnings("ignore", message="`torch.jit.load` is deprecated", category=DeprecationWarning)
            module = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise UserError(
            f"{path} is no TorchScript file: write one with torch.jit.trace(network.eval(), example).save(PATH)"
        ) from error
    return ScriptExtractor(module, card, name=f"{path.stem}-{digest.hexdigest()[:8]}", device=device)


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"{str(output.dtype).removeprefix('torch.')} {list(output.shape)}"
    if isinstance(output, dict):
        return f"a dict of {', '.join(map(repr, output))}"
    return f"a {type(output).__name__}" + (f" of {len(output)}" if isinstance(output, (tuple, list)) else "")
