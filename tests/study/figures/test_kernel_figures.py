"""Kernels as tiles: every weight in its place, signed panels on one scale; shown and saved."""

import pytest
import torch

from study.figures import plots as figures


@pytest.fixture
def panels():
    weight = torch.arange(3 * 2 * 2 * 3, dtype=torch.float64).view(3, 2, 2, 3) - 10
    return {"weight": weight, "gate": torch.rand(3, 2, 1, 1), "product": weight / 2}


def test_a_weight_is_at_its_filter_channel_row_and_column(panels):
    mesh = figures.kernels(panels, "t").axes[0].collections[0]
    drawn, weight = mesh.get_array().reshape(3 * 2, 2 * 3), panels["weight"]
    for f, c, i, j in ((0, 0, 0, 0), (2, 1, 1, 2), (1, 0, 1, 2)):
        assert drawn[2 * f + i, 3 * c + j] == weight[f, c, i, j]


def test_signed_panels_share_a_scale_around_zero_and_others_have_their_own(panels):
    axes = figures.kernels(panels, "t").axes
    limits = [axes[i].collections[0].get_clim() for i in range(3)]
    assert limits[0] == limits[2] == (-25, 25)
    assert limits[1] == (panels["gate"].min(), panels["gate"].max())


def test_only_the_first_eight_are_shown_and_spare_places_are_empty():
    many = {name: torch.ones(20, 30, 3, 3) for name in "abcd"}
    axes = figures.kernels(many, "t", columns=3).axes
    assert axes[0].collections[0].get_array().size == 64 * 9
    assert [a.axison for a in axes[:6]] == [True] * 4 + [False] * 2


def test_a_figure_is_saved_where_there_is_a_folder(panels, tmp_path, capsys):
    figures.show(figures.kernels(panels, "t"), "name", tmp_path)
    assert (tmp_path / "name.svg").read_text().startswith("<?xml")
    figures.show(figures.kernels(panels, "t"), "other", None)
    assert [path.name for path in tmp_path.iterdir()] == ["name.svg"]
