"""Hydra's plugins are those of installed distributions, and this package's: no folder of this name that lies beside a command.

Python would take them all together, or the first that has an `__init__.py` alone; this one is found before any other.
"""

import os
import site
import sys

_OURS = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "_hydra")
_HERE = {"", os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)} - {_OURS}
_SITE = {*site.getsitepackages(), site.getusersitepackages()}
_FOUND = [each for each in sys.path if each in _SITE or os.path.abspath(each) not in {os.path.abspath(path) for path in _HERE}]

__path__ = [path for each in dict.fromkeys([_OURS, *_FOUND]) if os.path.isdir(path := os.path.join(each, "hydra_plugins"))]
__path__ = [path for path in __path__ if not os.path.samefile(path, os.path.dirname(__file__))]
