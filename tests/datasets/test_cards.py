from __future__ import annotations

from importlib.resources import files

import pytest

RECIPES = ["digits", "flights", "movielens_100k", "synthetic"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_has_a_card_that_says_what_one_needs(recipe):
    card = files("dask_dml.datasets").joinpath(f"{recipe}.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {recipe}\n")
    for subject in ("Source", "Licence", "olumns", "arget", "Missing values", "Split", "Rebuild"):
        assert subject in card, f"the card of {recipe} says nothing about {subject!r}"


def test_every_recipe_is_listed():
    folder = files("dask_dml.datasets")
    modules = {
        path.name.removesuffix(".py")
        for path in folder.iterdir()
        if path.name.endswith(".py") and not path.name.startswith("_")
    }
    assert modules == set(RECIPES)
