"""Feature extractors by name or path; ours are small classifiers with fixed, hashed weights.

Retraining an extractor moves a Frechet distance by up to 1.7 times, so a number is named after the exact weights
behind it (`FD[mnist-1a2b3c4d]`) and a file is refused when its bytes are not the ones its name promises.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from trilemma.atomic import atomic_write
from trilemma.data.images import to_float
from trilemma.errors import UserError
from trilemma.evaluation.features.base import Embedding, Extractor, Images, chunks
from trilemma.evaluation.features.card import ExtractorCard, build_network
from trilemma.evaluation.features.script import SUFFIXES, load_script
from trilemma.networks.classifier import FeatureClassifier

__all__ = [
    "ClassifierExtractor",
    "Embedding",
    "Extractor",
    "Images",
    "chunks",
    "find_extractor",
    "load_extractor",
    "save_extractor",
]

SHIPPED = Path(__file__).parent / "extractors"
MAX_BYTES = 2_000_000
_METADATA_KEY = "trilemma.extractor"


class ClassifierExtractor(Extractor):
    """A classifier of ours, frozen: its last hidden layer gives the features. It reads images of one shape only.

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
        super().__init__(
            name=f"{card.dataset}-{sha256[:8]}", label_names=card.label_names, device=device, batch_size=batch_size
        )
        self.network = network.to(device).eval().requires_grad_(False)
        self.card = card
        self.sha256 = sha256

    def check(self, images: Images) -> None:
        """Raise `UserError` unless the images have the shape it was trained on."""
        if tuple(images.shape[1:]) != self.card.image_shape:
            shape = ", ".join(map(str, self.card.image_shape))
            raise UserError(
                f"extractor {self.name} reads images [N, {shape}], got {list(images.shape)}: "
                "evaluate at the native size, or name an extractor of this size"
            )

    def see(self, batch: Tensor) -> Embedding:
        """Features [B, d] and logits [B, K] of a batch, uint8 [B, C, H, W]."""
        self.network.eval()  # whoever holds the module may have switched it
        features = self.network.features(to_float(batch))
        return Embedding(features, self.network.head(features))


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
    """Load an extractor.

    Args:
        source: A data set (`mnist`), a shipped extractor (`mnist-1a2b3c4d`), the path of a file of ours,
            `<dataset>-<sha8>.safetensors`, whose bytes must be those its name promises, or the path of any network as
            a TorchScript file with a card beside it (`extractor_script`). TorchScript runs the code in the file: name
            only files that you trust.
        device: Where it is to run.

    Raises:
        UserError: If there is no such file, or it is damaged, or not an extractor.
    """
    path = Path(source)
    if path.suffix in SUFFIXES or (path.suffix != ".safetensors" and path.is_file()):
        return load_script(path, device=device)
    return _load_classifier(_resolve(source), device)


def _load_classifier(path: Path, device: torch.device | str) -> ClassifierExtractor:
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the extractor {path}: {error.strerror or error}; check the path") from error
    sha256 = hashlib.sha256(payload).hexdigest()
    truthful = path.stem.rpartition("-")[2] == sha256[:8]
    try:
        with safe_open(path, "pt") as reader:
            metadata = reader.metadata() or {}
        bare = _METADATA_KEY not in metadata
    except SafetensorError as error:
        if truthful:
            raise UserError(
                f"{path} is not a file of extractor weights ({error}): make one with experiment=*/classifier"
            ) from error
        bare = False
    if bare:
        raise UserError(
            f"{path} holds weights only: a safetensors file needs a card in its metadata that names a class of "
            "trilemma.networks (experiment=*/classifier writes one); give any other network as TorchScript, "
            "extractor=NAME.pt with NAME.pt.json beside it"
        )
    if not truthful:
        raise UserError(
            f"{path} has the hash {sha256[:8]}, not the one in its name: it was changed or damaged; restore it"
        )
    try:
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
    return ClassifierExtractor(network, card, sha256=sha256, device=device)


def _resolve(source: str | Path) -> Path:
    path = Path(source)
    if path.suffix == ".safetensors":
        return path
    shipped = SHIPPED / f"{source}.safetensors"
    return shipped if shipped.is_file() else find_extractor(str(source))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(Path(name).stem for name in names) or "none"
