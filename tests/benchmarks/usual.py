"""How often the rules and cautions of the pixels speak of phantoms with nothing wrong.

Run: PYTHONPATH=. python tests/benchmarks/usual.py --count 100 --out usual.jsonl [--real FOLDER]

Phantoms of presets as `pe-triage phantom` draws them, 256 x 256, from seed `FIRST_SEED` on: none of
them set a limit or stands in typical.json. The last line for each preset counts. docs/quality.md
states the figures.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pe_triage.cli.analyze import read_folder
from pe_triage.imaging.volume import load_volume
from pe_triage.phantom import generate_study
from tests.benchmarks.strange import judged
from tests.benchmarks.typical import volume_of

FIRST_SEED = 26_000_000


def summed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of what refused or cautioned, and how the strangeness spreads."""
    spreads = [row["strangeness"] for row in rows if row["strangeness"] is not None]
    alternating = [round(row["alternation"], 3) for row in rows]
    return {
        "phantoms": len(rows),
        "refused": Counter(row["refused"] for row in rows if row["refused"]),
        "cautions": Counter(name for row in rows for name in row["cautions"]),
        "strangeness": [round(float(v), 2) for v in np.percentile(spreads, (0, 50, 95, 100))],
        "alternation": [min(alternating), max(alternating)],
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=100)
    options.add_argument("--size", type=int, default=256)
    options.add_argument("--presets", nargs="+", default=["standard"])
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--real", type=Path)
    given = options.parse_args()
    with given.out.open("w", encoding="utf-8") as out:

        def write(**row: Any) -> None:
            out.write(json.dumps(row) + "\n")
            out.flush()

        if given.real is not None:
            for folder in sorted({path.parent for path in given.real.glob("chest_*/*.dcm")}):
                write(real=folder.name, **judged(load_volume(read_folder(folder))))
        for preset in given.presets:
            rows = []
            for seed in range(FIRST_SEED, FIRST_SEED + given.count):
                study = generate_study(seed, preset, size=given.size, slice_spacing_mm=3.0)
                row = judged(volume_of(study.hu_zyx, study.spacing_mm))
                # Severe motion and poor contrast are drawn too: there a caution is none too many.
                row["indeterminate"] = bool(study.exam["indeterminate"])
                rows.append(row)
                write(preset=preset, seed=seed, **row)
            sound = [row for row in rows if not row["indeterminate"]]
            print(preset, json.dumps({"all": summed(rows), "evaluable": summed(sound)}))


if __name__ == "__main__":
    main()
