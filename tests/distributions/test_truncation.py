import pytest
import torch

from trilemma.distributions.truncation import truncate


def by_sorting(p, mass):
    """Row by row in plain Python."""
    out = torch.zeros_like(p)
    for row, kept in zip(p, out, strict=True):
        total = 0.0
        for k in row.argsort(descending=True).tolist():
            if total >= mass:
                break
            kept[k] = row[k]
            total += float(row[k])
        kept /= kept.sum()
    return out


@pytest.mark.parametrize("mass", [1e-6, 0.3, 0.86, 0.999])
@pytest.mark.parametrize("num_classes", [2, 7, 32, 33, 100])
@pytest.mark.parametrize("sharpness", [0.1, 4.0])
def test_truncation_keeps_the_head(mass, num_classes, sharpness):
    generator = torch.Generator().manual_seed(0)
    logits = sharpness * torch.randn(40, num_classes, dtype=torch.float64, generator=generator)
    log_p = logits.log_softmax(-1)
    truncated = truncate(7 + log_p.view(4, 10, num_classes), mass).view_as(log_p).log_softmax(-1)
    torch.testing.assert_close(truncated.exp(), by_sorting(log_p.exp(), mass), rtol=1e-9, atol=1e-12)


def test_one_keeps_everything_and_ties_stand_together():
    log_p = torch.randn(3, 4, 9).log_softmax(-1)
    assert truncate(log_p, 1.0) is log_p
    flat = torch.zeros(1, 8, dtype=torch.float64)
    torch.testing.assert_close(truncate(flat, 0.5), flat)
