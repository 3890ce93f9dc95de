"""Slow runs against the published shape of the results; `make acceptance` runs them."""

import json
import subprocess
import sys
import time

import pytest


def _run(out, seed):
    started = time.monotonic()
    subprocess.run(
        [
            sys.executable,
            "-m",
            "bayes_sym.experiments.cli",
            "run",
            "digits-c4",
            "--quiet",
            "--seed",
            str(seed),
            "--out",
            str(out),
        ],
        check=True,
        timeout=900,
    )
    rows = json.loads((out / "results.json").read_text())["rows"]
    return {row.pop("method"): row for row in rows}, time.monotonic() - started


@pytest.mark.acceptance
@pytest.mark.timeout(1800)
def test_digits_c4_has_the_expected_shape_and_repeats(tmp_path):
    first, _ = _run(tmp_path / "a", 1)
    second, _ = _run(tmp_path / "b", 1)
    for row in (*first.values(), *second.values()):
        del row["seconds"]
    assert first == second

    small, wide, orbit = first["vi-augmented"], first["vi-augmented-wide"], first["vi-orbit-expansion"]
    assert small["equivariance_error"] > 0.03
    assert orbit["equivariance_error"] < 0.002 and orbit["orbit_agreement"] > 0.97
    assert orbit["orbit_accuracy"] > small["orbit_accuracy"] + 0.05
    assert wide["orbit_accuracy"] > small["orbit_accuracy"] + 0.05, "width explains the accuracy"
    # one net, one evidence: it keeps the symmetry where the data have it, and breaks it where they have not
    upright, rotated = first["soft-laplace"], first["soft-laplace-rotated"]
    assert rotated["equivariance_error"] < 0.2 * upright["equivariance_error"]
