"""Systems that are not there yet, each by the files that it would add: `toys` stands for `src/trilemma`, `conf` for `conf`."""

from pathlib import Path

import trilemma

HERE = Path(__file__).parent

# A configuration may name classes of the package alone: the toys are its modules `trilemma.toys.*`.
if str(HERE) not in trilemma.__path__:
    trilemma.__path__.append(str(HERE))
