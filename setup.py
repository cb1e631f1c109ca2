"""What remains of setup.py: the metadata and the list of packages are in pyproject.toml."""

from setuptools import setup

setup()
