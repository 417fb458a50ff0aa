"""A drawn screen is no toy: naive pixels tell the week, the truth the mechanism, and a network can learn it.

The figures are made with a plain nearest-neighbour oracle of this file.
"""

from __future__ import annotations

import itertools
from decimal import Decimal

import numpy as np
import pytest
from numpy.typing import NDArray

from hcs_ray.screen.synthetic import SyntheticConfig
from hcs_ray.screen.synthetic.cells import field_plan, sample_cells, truth_of
from hcs_ray.screen.synthetic.draw import draw_field
from hcs_ray.screen.synthetic.layout import plan
from hcs_ray.screen.synthetic.phenotypes import NAMES

SMALLEST = SyntheticConfig.preset("smallest")


def statistics(images: list[NDArray[np.uint16]]) -> NDArray[np.float64]:
    """What anyone can measure without looking: mean, SD and percentiles of each channel."""
    parts = [
        [image.mean(), image.std(), *np.percentile(image, [1, 5, 25, 50, 75, 95, 99])] for image in images
    ]
    return np.array(parts).ravel()


def labelled_profiles(
    config: SyntheticConfig,
) -> tuple[dict[str, NDArray[np.float64]], list[tuple[str, int, str]]]:
    """Profiles of the labelled treatments by pixels and by the truth; compound, week and MoA of each."""
    found: dict[tuple[str, Decimal], list[tuple[NDArray[np.float64], list[float]]]] = {}
    about: dict[tuple[str, Decimal], tuple[str, int, str]] = {}
    for plate in (screen := plan(config)).plates:
        for well, site in itertools.product(plate.wells, range(1, screen.config.sites + 1)):
            said = well.said
            if said.compound.kind != "labelled" or not said.acts or well.name in config.assay.taxol_wells:
                continue
            field = field_plan(config, plate, well, site)
            shapes = truth_of(field, sample_cells(field))
            truth = [np.nan if shapes[f"Shape_{name}"] is None else shapes[f"Shape_{name}"] for name in NAMES]
            identity = (said.compound.name, said.concentration_um)
            found.setdefault(identity, []).append((statistics(draw_field(field)), truth))  # type: ignore[arg-type]
            about[identity] = (said.compound.name, plate.week, str(said.compound.moa))
    pixels = np.array([np.mean([pair[0] for pair in found[key]], axis=0) for key in sorted(found)])
    truths = np.array([np.nanmean([pair[1] for pair in found[key]], axis=0) for key in sorted(found)])
    return {"pixels": pixels, "truth": truths}, [about[key] for key in sorted(found)]


def neighbours(profiles: NDArray[np.float64], excluded: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The nearest treatment by cosine of the standardised profiles, the excluded ones left out."""
    scaled = (profiles - profiles.mean(axis=0)) / np.maximum(profiles.std(axis=0), 1e-9)
    unit = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.asarray(np.where(excluded, -np.inf, unit @ unit.T).argmax(axis=1))


def figures(config: SyntheticConfig) -> dict[str, float]:
    profiles, about = labelled_profiles(config)
    compound, week, moa = (np.array(column) for column in zip(*about, strict=True))
    same_compound, same_week = compound[:, None] == compound, week[:, None] == week
    nearest = neighbours(profiles["pixels"], same_compound)
    allowed = ~same_compound
    found = {
        "share": float((week[nearest] == week).mean()),
        "chance": float(((same_week & allowed).sum(axis=1) / allowed.sum(axis=1)).mean()),
    }
    for name, table in profiles.items():
        found[f"nscb_{name}"] = float((moa[neighbours(table, same_compound | same_week)] == moa).mean())
    return found


def check_no_toy(found: dict[str, float]) -> None:
    assert found["share"] >= 2.0 * found["chance"], found
    assert found["nscb_pixels"] < found["nscb_truth"], found
    assert found["nscb_truth"] >= 0.8, found  # the phenotypes are there to be found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_naive_statistics_see_the_week_and_not_the_mechanism(seed: int) -> None:
    check_no_toy(figures(SyntheticConfig.preset("smallest", seed=seed)))


@pytest.mark.soak
@pytest.mark.parametrize("preset", ["smallest", "demo"])
@pytest.mark.parametrize("seed", range(3, 15))
def test_naive_statistics_see_the_week_on_many_seeds(preset: str, seed: int) -> None:
    check_no_toy(figures(SyntheticConfig.preset(preset, seed=seed)))  # type: ignore[arg-type]


def test_without_nuisance_naive_statistics_see_less_of_the_week() -> None:
    with_nuisance = figures(SMALLEST)
    without = figures(SMALLEST.model_copy(update={"nuisance_strength": 0.0}))
    assert without["share"] < with_nuisance["share"] - 0.2


def plate_scaled(config: SyntheticConfig) -> tuple[NDArray[np.float32], NDArray[np.intp], NDArray[np.str_]]:
    """Labelled fields (n, 3, rows, columns), scaled by their plate's DMSO wells; MoA numbers; compounds."""
    images, moas, compounds = [], [], []
    for plate in plan(config).plates:
        fields = [
            field_plan(config, plate, well, site + 1) for well in plate.wells for site in range(config.sites)
        ]
        drawn = np.stack([np.stack(draw_field(field)) for field in fields]).astype(np.float32)
        drawn = drawn.reshape(*drawn.shape[:2], config.height_px // 2, 2, config.width_px // 2, 2).mean(
            axis=(3, 5)
        )
        controls = drawn[[field.well.said.compound.kind == "dmso" for field in fields]]
        low, high = np.percentile(controls, [1, 99.5], axis=(0, 2, 3))
        scaled = (drawn - low[:, None, None]) / (high - low)[:, None, None]
        for image, said in zip(scaled, (field.well.said for field in fields), strict=True):
            if said.acts and said.compound.kind == "labelled":
                images.append(image.astype(np.float32))
                moas.append(config.moas.index(str(said.compound.moa)))
                compounds.append(said.compound.name)
    return np.stack(images), np.array(moas), np.array(compounds)


@pytest.mark.soak
def test_a_small_network_tells_the_mechanisms_of_compounds_it_never_saw() -> None:
    import torch
    from torch import nn

    torch.manual_seed(0)
    images, moas, compounds = plate_scaled(config := SyntheticConfig.preset("demo"))
    held = {sorted(set(compounds[moas == moa]))[0] for moa in range(len(config.moas))}
    train = np.flatnonzero(~np.isin(compounds, list(held)))
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise((3, 16, 32, 64, 64)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, len(config.moas)))
    pixels, labels = torch.from_numpy(images), torch.from_numpy(moas)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(12):
        for batch in torch.from_numpy(train)[torch.randperm(len(train))].chunk(-(-len(train) // 32)):
            loss = nn.functional.cross_entropy(
                model(pixels[batch].flip(int(torch.randint(2, 4, ())))), labels[batch]
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    model.eval()
    test = torch.from_numpy(np.isin(compounds, list(held)))
    with torch.no_grad():
        right = (model(pixels[test]).argmax(dim=1) == labels[test]).float().mean().item()
    print("held-out accuracy", right)
    assert right > 2.0 / len(config.moas)
