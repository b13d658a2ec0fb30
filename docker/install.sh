#!/bin/sh
# install.sh PYTHON FOLDER SOURCE EXTRAS [VENV_OPTION]
# An environment in FOLDER with vl3edge from SOURCE. All images are made by it; try.py runs it without a container.
set -eu
"$1" -m venv ${5:-} "$2"
"$2/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check "$3[$4]"
"$2/bin/vl3edge" --version
