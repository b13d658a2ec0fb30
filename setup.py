"""Finds the packages: every folder with an __init__.py below these four is one of the namespace vl3edge."""

from setuptools import find_packages, setup

FOLDERS = ("runtime", "export", "quant", "models")

setup(
    packages=[
        "vl3edge",
        *(f"vl3edge.{name}" for name in find_packages(include=[*FOLDERS, *(f"{f}.*" for f in FOLDERS)])),
    ],
    # Of the namespace itself: nothing but its __main__.py.
    package_dir={"vl3edge": "runtime/command", **{f"vl3edge.{folder}": folder for folder in FOLDERS}},
)
