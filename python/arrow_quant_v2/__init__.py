"""The name that programs of ArrowQuant V2 import; everything in it is arrowquant's."""

from arrowquant import *  # noqa: F403
from arrowquant import __all__ as __all__
from arrowquant import __version__ as __version__
from arrowquant import open as open
