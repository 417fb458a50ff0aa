"""What a field costs in the statistics of its plate, and what they find of a planted light.

    python -m benchmarks.field_statistics

Times are medians of the thread's own time over generated fields of 1024 x 1280 in turn, so that none is in
the caches beforehand; the parts are measured on one field, which is.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hcs_ray.config import ShardsConfig
from hcs_ray.screen.synthetic import SyntheticConfig
from hcs_ray.screen.synthetic.draw import draw_field
from hcs_ray.screen.synthetic.layout import plan
from hcs_ray.screen.synthetic.truth import fields_of
from hcs_ray.shards import kernels, measure
from hcs_ray.shards.illumination import IlluminationEstimate, block_means
from hcs_ray.shards.nuclei import count_nuclei
from hcs_ray.shards.statistics import PlateStatistics
from tests import planted_light

Fields = list[NDArray[np.uint16]]
_CHANNELS = ("DAPI", "Tubulin", "Actin")
_FULL_SCALE = 4095 * 16
_PERCENTS = (0.1, 1.0, 50.0, 99.0, 99.9)


def main() -> None:
    """Print the three tables."""
    fields = drawn(12)
    print_times(fields)
    print_sampling(fields)
    print_residuals()


def drawn(number: int) -> Fields:
    """Generated fields from all over a plate."""
    screen = plan(SyntheticConfig.preset("bbbc021"))
    plate = screen.plates[0]
    places = np.linspace(0, len(plate.wells) * screen.config.sites - 1, number).astype(int).tolist()
    return [np.stack(draw_field(fields_of(screen, plate, at, at + 1)[0])) for at in places]


def milliseconds(call: Callable[[], object], number: int = 40) -> float:
    """The median of the thread's time."""
    spent = []
    for _ in range(number):
        started = time.thread_time()
        call()
        spent.append(time.thread_time() - started)
    return 1e3 * float(np.median(spent))


def print_times(fields: Fields) -> None:
    """ms a field of `PlateStatistics.add`, and of its parts for a plane or a frame that is in the caches."""
    shape: tuple[int, int, int] = fields[0].shape
    started = time.perf_counter()
    statistics = PlateStatistics(_CHANNELS, shape, ShardsConfig(), "DAPI", _FULL_SCALE)
    statistics.add(fields[0], "B02", 1)
    print(f"first field, with compiling where nothing is cached: {time.perf_counter() - started:.1f} s")
    turn = iter(fields * 10)
    print(f"{'add, a field':<34}{milliseconds(lambda: statistics.add(next(turn), 'B02', 1), 60):8.2f} ms")
    for name, call in parts(fields[0]).items():
        call()
        print(f"{'  ' + name:<34}{milliseconds(call):8.2f} ms")
    for name, call in {
        "illumination": statistics.illumination,
        "field_table": statistics.field_table,
    }.items():
        print(f"{name + ', a plate':<34}{milliseconds(call, 3):8.0f} ms")


def parts(field: NDArray[np.uint16]) -> dict[str, Callable[[], object]]:
    """The passes of one field, each alone."""
    reader = measure.FieldReader(field.shape, (0.1, 99.9), 0, _FULL_SCALE)
    measures, frame = reader.measure(field)
    edges = [measure.tile_edges(side) for side in frame.shape[1:]]
    sums = np.empty((256, 320), np.uint32)
    counts = np.empty((kernels.LANES, kernels.VALUES >> 4), np.uint32)
    background, unit = (measures.values[:, -1].astype(np.float32), np.ones(len(field), np.float32))
    estimate = IlluminationEstimate(field.shape, 8, "mean", False)
    brightest = float(np.percentile(field[0], 99.5))
    return {
        "block sums, a plane": lambda: kernels.block_sums(field[0], 4, sums),
        "focus score, a plane": lambda: measure.focus_score(sums, 1e4),
        "histogram, a plane": lambda: kernels.histogram(field[0], 2, 4, counts),
        "darkest blocks, a plane": lambda: measure.darkest_blocks(frame[0], edges),
        "cell area and debris, a field": lambda: [
            measure.levels_of(kernels.opened(light))
            for light in kernels.brightest_two(frame, background, unit)
        ],
        "nuclei, a field": lambda: count_nuclei(frame[0], edges, brightest),
        "sums of normalised frames, a field": lambda: estimate.add(frame, 1),
    }


def print_sampling(fields: Fields) -> None:
    """How far the percentiles of every second row are from those of all, in percent."""
    wanted, found = (
        np.array(
            [
                [np.percentile(plane[::every], _PERCENTS, method="higher") for plane in field]
                for field in fields
            ]
        )
        for every in (1, 2)
    )
    error = 100 * np.abs(found / wanted - 1)
    print(f"\n{'percentile of every second row':<34}{'median error':>14}{'largest':>10}")
    for place, percent in enumerate(_PERCENTS):
        print(f"{percent:<34}{np.median(error[..., place]):12.2f} %{error[..., place].max():8.2f} %")


def print_residuals() -> None:
    """What is left of a planted light, median and largest deviation in percent, with 5 % outlying fields."""
    print(f"\n{'planted light, fields':<34}" + "".join(f"{name:>20}" for name in ("mean", "median", "plain")))
    for number, plates in ((24, 6), (240, 2)):
        for radius, content in ((3.0, "nuclei"), (6.5, "cells")):
            for kind in ("gaussian", "cos4", "tilted", "none"):
                shade = planted_light.vignetting(kind)
                fields = [planted_light.plate_of(number, seed, radius) * shade for seed in range(plates)]
                row = [
                    np.mean([planted_light.residual(find(part), shade) for part in fields], axis=0)
                    for find in (by_mean, by_median, planted_light.plain)
                ]
                figures = "".join(f"{median:11.2f} /{worst:6.1f} " for median, worst in row)
                print(f"{f'{kind} on {content}, {number}':<34}{figures}")


def by_mean(fields: planted_light.Float64) -> planted_light.Float64:
    """The function of the blocks that the mean gives."""
    return _estimated(fields, IlluminationEstimate((1, 1024, 1280), 8, "mean", False))


def by_median(fields: planted_light.Float64) -> planted_light.Float64:
    """The function of the blocks that the median gives."""
    return _estimated(fields, IlluminationEstimate((1, 1024, 1280), 8, "median", False))


def _estimated(fields: planted_light.Float64, estimate: IlluminationEstimate) -> planted_light.Float64:
    for field in fields:
        estimate.add(field[None].astype(np.float32), 1)
    return np.asarray(block_means(estimate.functions(0.05)[0], 8)[0])


if __name__ == "__main__":
    main()
