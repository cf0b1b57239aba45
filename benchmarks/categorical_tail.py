"""How often is the tail of a categorical distribution drawn? Ours, a float32 CDF, and float32 Gumbel noise, against the distribution.

One heavy class holds 99 %, many light ones 1 % together, each too light for float32 to tell from nothing beside the
heavy one. Is the tail as a whole drawn at its rate, and can each of its classes be drawn at all?

    python benchmarks/categorical_tail.py
"""

import argparse
import math
from collections.abc import Callable

import torch
from torch import Tensor

from trilemma.processes.inverse_cdf import inverse_cdf

Draw = Callable[[Tensor, int, torch.Generator], Tensor]


def ours(p: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Float64 group sums, then a float64 CDF inside one group."""
    u = torch.rand(num, dtype=torch.float64, generator=generator)
    # Rows are views of one row: the draw sums each anew, as it would for distinct rows.
    return torch.cat([inverse_cdf(p.expand(len(part), -1), part) for part in u.split(16)])


def float32_cdf(p: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """cumsum and searchsorted in float32."""
    cdf = p.cumsum(0)
    return torch.searchsorted(cdf, torch.rand(num, generator=generator) * cdf[-1], right=True)


def float32_gumbel(p: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """argmax of log p + Gumbel noise in float32."""
    log_p = p.log()
    drawn = []
    for _ in range(num):
        u = torch.rand(len(p), generator=generator).clamp_(min=1e-30)
        drawn.append((log_p - u.log_().neg_().log_()).argmax())
    return torch.stack(drawn)


def reachable(p: Tensor) -> float:
    """Share of the light classes whose interval of a float32 CDF is not empty; the first class is the heavy one."""
    return float((p.cumsum(0).diff() > 0).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-draws", type=int, default=2000, help="draws a method and distribution")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    methods: dict[str, Draw] = {"ours": ours, "float32 CDF": float32_cdf, "float32 Gumbel-max": float32_gumbel}
    num = options.num_draws
    print(f"{'light p':>8} {'classes':>8} {'method':>20} {'tail expected':>14} {'observed':>9} {'z':>6}")
    for light, num_tail in ((5e-8, 200_000), (2e-8, 500_000), (1e-8, 1_000_000)):
        # The heavy class comes first: the tail's CDF lies near 1, where float32 is coarsest.
        p = torch.full((num_tail + 1,), light)
        p[0] = 0.99
        truth = light * num_tail / (light * num_tail + 0.99)
        for name, draw in methods.items():
            generator = torch.Generator().manual_seed(options.seed)
            share = float((draw(p, num, generator) != 0).double().mean())
            z = (share - truth) / math.sqrt(truth * (1 - truth) / num)
            print(f"{light:>8.0e} {num_tail:>8} {name:>20} {100 * truth:>12.2f} % {100 * share:>7.2f} % {z:>6.1f}")
        print(f"{'':>17} a float32 CDF can draw {100 * reachable(p):.0f} % of the light classes, the others never")


if __name__ == "__main__":
    main()
