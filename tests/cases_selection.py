"""Problems of norms, scores, above and nm_mask; see cases.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from pycompress import kernels

ULP = 2.0**-24


def weights(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random weights, some with zeros, outliers, few levels or another layout."""
    array = (rng.normal(size=shape) * 10.0 ** rng.integers(-6, 7)).astype(np.float32)
    kind = rng.integers(6)
    if kind == 0:
        array[rng.random(shape) < 0.7] = 0
    elif kind == 1:
        array = np.sign(array) * rng.integers(0, 3, shape).astype(np.float32)
    elif kind == 2 and array.size:
        array.flat[rng.integers(array.size)] = 1e18
    elif kind == 3 and len(shape) == 2:
        array = np.asfortranarray(array)
    return array


def norms(rng: np.random.Generator, rows: int, columns: int, size: int) -> dict[str, Any]:
    per: Any = str(rng.choice(["row", "column"]))
    if rng.random() < 0.6:
        per = int(rng.choice([1, 2, 4, 16, size + 1])), int(rng.choice([1, 3, 4, 16, 63, 64, 70, size + 1]))
    weight, kind = weights(rng, rows, columns), rng.integers(3)
    gradient = weights(rng, rows, columns) if kind == 1 else None
    factor = np.abs(weights(rng, columns)) if kind == 2 else None
    return {"weight": weight, "per": per, "gradient": gradient, "input_norms": factor}


def norms_truth(problem: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    values = np.abs(problem["weight"].astype(np.float64))
    if problem["gradient"] is not None:
        values = values * np.abs(problem["gradient"].astype(np.float64))
    if problem["input_norms"] is not None:
        values = values * problem["input_norms"]
    if problem["per"] in ("row", "column"):
        axis = 1 if problem["per"] == "row" else 0
        return values.sum(axis), np.sqrt((values**2).sum(axis))
    (rows, columns), (height, width) = values.shape, problem["per"]
    l1 = np.empty((-(-rows // height), -(-columns // width)))
    l2 = np.empty_like(l1)
    for i in range(l1.shape[0]):
        for j in range(l1.shape[1]):
            block = values[i * height : (i + 1) * height, j * width : (j + 1) * width]
            l1[i, j], l2[i, j] = block.sum(), np.sqrt((block**2).sum())
    return l1, l2


def norms_tolerance(problem: dict[str, Any], truth: np.ndarray) -> np.ndarray:
    return 2 * ULP * truth + 1e-44  # sums in double, rounded once; the last term for subnormal numbers


def run_norms(problem: dict[str, Any]) -> tuple[Any, ...]:
    arguments = {key: value for key, value in problem.items() if key not in ("weight", "per")}
    return tuple(kernels.norms(problem["weight"], problem["per"], **arguments))


def scores(rng: np.random.Generator, rows: int, columns: int, _: int) -> dict[str, Any]:
    return {"weight": weights(rng, rows, columns), "per": str(rng.choice(["row", "column", "element"]))}


def scores_truth(problem: dict[str, Any], power: int) -> np.ndarray:
    magnitudes = np.abs(problem["weight"].astype(np.float64))
    if problem["per"] == "element":
        return magnitudes
    return (magnitudes**power).sum(axis=1 if problem["per"] == "row" else 0) ** (1 / power)


def scores_tolerance(problem: dict[str, Any], truth: np.ndarray) -> np.ndarray:
    if problem["per"] == "element":
        return np.zeros_like(truth)
    return (2 * problem["weight"].shape[problem["per"] == "row"] + 1) * ULP * truth


def above(rng: np.random.Generator, a: int, b: int, c: int) -> dict[str, Any]:
    array = weights(rng, a * b * c % 9001) if rng.random() < 0.5 else weights(rng, a, b)
    threshold = float(np.abs(array).max(initial=1)) * float(rng.choice([0, 0.01, 0.5, 1, 2, np.inf]))
    if array.size and rng.random() < 0.5:
        threshold = float(np.abs(rng.choice(array.ravel()))) * float(rng.choice([1, 1 + 1e-9, 1 - 1e-9]))
    forms = {name: bool(rng.random() < 0.7) for name in ("mask", "bitmap", "packed")}
    return {"array": array, "threshold": threshold, **forms}


def run_above(problem: dict[str, Any]) -> tuple[Any, ...]:
    found = kernels.above(**problem)
    if found.mask is not None:
        assert found.zeros == int((np.asarray(found.mask) == 0).sum())
    if found.values is not None:
        assert found.zeros == int(np.prod(problem["array"].shape)) - len(found.values)
    return tuple(part for part in found[1:] if part is not None)


def above_truth(problem: dict[str, Any]) -> tuple[Any, ...]:
    array = problem["array"]
    kept = np.abs(array.astype(np.float64)) > problem["threshold"]
    results: list[Any] = []
    if problem["mask"]:
        results.append(np.where(kept, np.int8(-1), np.int8(0)))
    if problem["bitmap"]:
        results.append(np.packbits(kept.ravel(), bitorder="little"))
    if problem["packed"]:
        gaps, since = [], 0
        for one in kept.ravel():
            if one:
                gaps += [255] * (since // 255) + [since % 255]
                since = 0
            else:
                since += 1
        results += [np.array(gaps, np.uint8), np.ascontiguousarray(array).ravel()[kept.ravel()]]
    return tuple(results)


def nm_mask(rng: np.random.Generator, rows: int, columns: int, _: int) -> dict[str, Any]:
    m = int(rng.choice([2, 3, 4, 5, 8, 16, 31, 32]))
    return {"weight": weights(rng, rows, columns), "n": int(rng.integers(1, m)), "m": m}


def nm_truth(problem: dict[str, Any]) -> np.ndarray:
    magnitudes, n, m = np.abs(problem["weight"].astype(np.float64)), problem["n"], problem["m"]
    mask = np.zeros(magnitudes.shape, np.int8)
    for row, marks in zip(magnitudes, mask, strict=True):
        for start in range(0, row.size, m):
            largest = np.argsort(row[start : start + m], kind="stable")[-n:]
            marks[start + largest] = -1
    return mask
