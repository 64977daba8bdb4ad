"""`python -m benchmarks`: the comparison with the published 0.3.0."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # the benchmarks are scripts that import one another by name

from published import main

main()
