"""Shelf of suites: models and settings to sweep over, one TOML file each; `vitbench.suite` reads them."""

from importlib.resources import files

SHIPPED = {file.name.removesuffix(".toml"): file for file in files(__name__).iterdir() if file.name.endswith(".toml")}
"""The files, by the name that a user gives."""
