"""Writes noise.json: probabilities of discrete Gaussians (Google's dp-accounting, Apache-2.0) and discrete Laplaces
(SciPy's dlaplace, BSD-3-Clause), values only.

    .venv/bin/python crates/privacy/tests/reference/make_noise.py
"""

import importlib.metadata
import json
import pathlib

from dp_accounting.pld import privacy_loss_mechanism
from scipy import stats


def gaussian(sigma, reach):
    loss = privacy_loss_mechanism.DiscreteGaussianPrivacyLoss(sigma, truncation_bound=40 + int(20 * sigma))
    cumulative = [float(loss.noise_cdf(k)) for k in range(-reach - 1, reach + 1)]
    return [b - a for a, b in zip(cumulative, cumulative[1:])]


def laplace(scale, reach):
    return [float(stats.dlaplace.pmf(k, 1 / scale)) for k in range(-reach, reach + 1)]


def main():
    gaussians = [(1, 4), (1, 1), (9, 1), (6241, 100), (2500, 1)]
    laplaces = [(1, 1), (7, 2), (1, 3), (40, 1)]
    document = {
        "source": "discrete Gaussian: dp-accounting, Apache-2.0; discrete Laplace: SciPy, BSD-3-Clause; values only",
        "versions": {name: importlib.metadata.version(name) for name in ("dp-accounting", "scipy")},
        "written_by": "crates/privacy/tests/reference/make_noise.py",
        "gaussian": [
            {"numerator": n, "denominator": d, "probabilities": gaussian((n / d) ** 0.5, int(5 * (n / d) ** 0.5) + 2)}
            for n, d in gaussians
        ],
        "laplace": [
            {"numerator": n, "denominator": d, "probabilities": laplace(n / d, int(8 * n / d) + 2)} for n, d in laplaces
        ],
    }
    path = pathlib.Path(__file__).with_name("noise.json")
    path.write_text(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
