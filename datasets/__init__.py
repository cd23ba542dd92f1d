"""Recipes of the example datasets, installed as `dask_dml.datasets`.

Each module builds one dataset, or one family of generated ones; the card of the same name
beside it says where the data comes from, under which licence, and what the recipe does to it.
"""
