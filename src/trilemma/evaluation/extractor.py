"""Feature extractors: small classifiers with fixed, hashed weights.

Retraining an extractor moves a Frechet distance by up to 1.7 times, so a number is named after the exact weights
behind it (`FD[mnist-1a2b3c4d]`) and a file is refused when its bytes are not the ones its name promises.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from trilemma.atomic import atomic_write
from trilemma.data.images import to_float
from trilemma.data.split import MappedImages
from trilemma.errors import UserError
from trilemma.evaluation.card import ExtractorCard, build_network
from trilemma.networks.classifier import FeatureClassifier

SHIPPED = Path(__file__).parent / "extractors"
MAX_BYTES = 2_000_000
Images = Tensor | MappedImages  # uint8 [N, C, H, W], in memory or on disk
_METADATA_KEY = "trilemma.extractor"


class Embedding(NamedTuple):
    """What an extractor sees: features float32 [N, d] and logits float32 [N, K], on the CPU."""

    features: Tensor
    logits: Tensor


class Extractor:
    """A frozen classifier that turns uint8 images into features.

    Images pass in batches of one size, the last one padded: the kernels that run, and with them the rounding of an
    image's features, do not depend on how many images there are.

    Args:
        network: The classifier.
        card: What it is.
        sha256: Of the file that holds it, in hex.
        device: Where it runs.
        batch_size: Images at a time.
    """

    def __init__(
        self,
        network: FeatureClassifier,
        card: ExtractorCard,
        *,
        sha256: str,
        device: torch.device | str = "cpu",
        batch_size: int = 250,
    ) -> None:
        self.network = network.to(device).eval().requires_grad_(False)
        self.card = card
        self.sha256 = sha256
        self.device = torch.device(device)
        self.batch_size = batch_size

    @property
    def name(self) -> str:
        """`<dataset>-<sha8>`."""
        return f"{self.card.dataset}-{self.sha256[:8]}"

    @property
    def num_classes(self) -> int:
        """Number of classes K of the logits."""
        return len(self.card.label_names)

    def features(self, images: Images) -> Tensor:
        """Features float32 [N, d], on the CPU, of images uint8 [N, C, H, W]; raises as `embed` does."""
        return self.embed(images).features

    def logits(self, images: Images) -> Tensor:
        """Logits float32 [N, K], on the CPU, of images uint8 [N, C, H, W]; raises as `embed` does."""
        return self.embed(images).logits

    @torch.no_grad()
    def embed(self, images: Images) -> Embedding:
        """Features and logits.

        Args:
            images: uint8 [N, C, H, W] of the shape it was trained on, N >= 1.

        Raises:
            UserError: If the images have another shape or type.
        """
        if images.dtype != torch.uint8:
            raise UserError(
                f"extractor {self.name} reads uint8 images, got {images.dtype}: round them with to_uint8 first"
            )
        if len(images.shape) != 4 or tuple(images.shape[1:]) != self.card.image_shape or len(images) == 0:
            shape = ", ".join(map(str, self.card.image_shape))
            raise UserError(
                f"extractor {self.name} reads images [N, {shape}], got {list(images.shape)}: "
                "evaluate at the native size, or name an extractor of this size"
            )
        self.network.eval()  # whoever holds the module may have switched it
        features: list[Tensor] = []
        logits: list[Tensor] = []
        for chunk in chunks(images, self.batch_size):
            padding = chunk.new_zeros(self.batch_size - len(chunk), *chunk.shape[1:])
            batch = to_float(torch.cat([chunk, padding]).to(self.device))
            seen = self.network.features(batch)[: len(chunk)]
            features.append(seen.float().cpu())
            logits.append(self.network.head(seen).float().cpu())
        return Embedding(torch.cat(features), torch.cat(logits))


def chunks(images: Images, size: int) -> Iterator[Tensor]:
    """Consecutive images, `size` at a time."""
    for start in range(0, len(images), size):
        yield images[start : start + size]


def save_extractor(network: FeatureClassifier, card: ExtractorCard, folder: str | Path = SHIPPED) -> Path:
    """Write a trained network as `<dataset>-<sha8>.safetensors`; equal weights and card give equal bytes.

    Args:
        network: The classifier, as `card.network` builds it.
        card: What it is.
        folder: Where; the package's own extractors by default.

    Returns:
        The file written.

    Raises:
        UserError: If the file would exceed 2 MB, or cannot be written, or `card.network` builds another network.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    twin = {name: tensor.shape for name, tensor in build_network(card.network).state_dict().items()}
    if twin != {name: tensor.shape for name, tensor in state.items()}:
        raise UserError(
            "the card's network is not the one whose weights are to be saved: give it the arguments it was built with"
        )
    if network.head.out_features != len(card.label_names):
        raise UserError(f"the card names {len(card.label_names)} labels for {network.head.out_features} classes")
    # One metadata key only: safetensors writes several in no particular order.
    payload = save(state, {_METADATA_KEY: card.to_json()})
    if len(payload) > MAX_BYTES:
        raise UserError(f"the extractor takes {len(payload):,} bytes, {MAX_BYTES:,} at most: use a smaller network")
    path = Path(folder) / f"{card.dataset}-{hashlib.sha256(payload).hexdigest()[:8]}.safetensors"
    with atomic_write(path) as handle:
        handle.write(payload)
    return path


def find_extractor(dataset: str, folder: str | Path = SHIPPED) -> Path:
    """File of the extractor for a data set.

    Raises:
        UserError: If there is none, or more than one; names those that exist.
    """
    names = sorted(path.name for path in Path(folder).glob("*.safetensors"))
    found = [name for name in names if name.rpartition("-")[0] == dataset]
    if not found:
        raise UserError(f"no extractor for {dataset!r}; there are: {_listed(names)}; name one, or the path of your own")
    if len(found) > 1:
        raise UserError(f"several extractors for {dataset!r} ({_listed(found)}): name one by its path")
    return Path(folder) / found[0]


def load_extractor(source: str | Path, *, device: torch.device | str = "cpu") -> Extractor:
    """Load an extractor and check that its bytes are those its name promises.

    Args:
        source: A data set (`mnist`), a shipped extractor (`mnist-1a2b3c4d`) or the path of a file
            `<dataset>-<sha8>.safetensors`.
        device: Where it is to run.

    Raises:
        UserError: If there is no such file, or it is damaged, or not an extractor.
    """
    path = _resolve(source)
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the extractor {path}: {error.strerror or error}; check the path") from error
    sha256 = hashlib.sha256(payload).hexdigest()
    if path.stem.rpartition("-")[2] != sha256[:8]:
        raise UserError(
            f"{path} has the hash {sha256[:8]}, not the one in its name: it was changed or damaged; restore it"
        )
    try:
        with safe_open(path, "pt") as reader:
            metadata = reader.metadata() or {}
        card = ExtractorCard.from_json(metadata[_METADATA_KEY])
        state = load(payload)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a file of extractor weights ({error}): make one with experiment=*/classifier"
        ) from error
    network = build_network(card.network)
    if network.head.out_features != len(card.label_names):
        raise UserError(f"{path} names {len(card.label_names)} labels for {network.head.out_features} classes")
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path}: its weights do not fit the network that it names") from error
    return Extractor(network, card, sha256=sha256, device=device)


def _resolve(source: str | Path) -> Path:
    path = Path(source)
    if path.suffix == ".safetensors":
        return path
    shipped = SHIPPED / f"{source}.safetensors"
    return shipped if shipped.is_file() else find_extractor(str(source))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(Path(name).stem for name in names) or "none"
