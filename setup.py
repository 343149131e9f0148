"""Builds the extension from python/_core.c; everything else is in pyproject.toml.

The stable ABI of CPython 3.11 makes one wheel for all later versions. Free-threaded builds have no
stable ABI: there the wheel is for that version alone.
"""
import os
import pathlib
import re
import sys
import sysconfig

from setuptools import Extension, setup

header = pathlib.Path(__file__).with_name("arrowquant.h").read_text(encoding="utf-8")
version = re.search(r'^#define AQ_VERSION "(.+)"$', header, re.M).group(1)
free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
windows = sys.platform == "win32"

extension = Extension(
    "arrowquant._core",
    sources=["python/_core.c"],
    depends=["arrowquant.h", "examples/aq.c"],
    define_macros=[] if free_threaded else [("Py_LIMITED_API", "0x030B0000")],
    py_limited_api=not free_threaded,
    extra_compile_args=[] if windows else ["-std=c11", "-O2", "-g0", "-fvisibility=hidden",
                                           *os.environ.get("AQ_CFLAGS", "").split()],
    extra_link_args=os.environ.get("AQ_LDFLAGS", "").split(),
    libraries=[] if windows else ["pthread", "m"],
)

setup(
    version=version,
    ext_modules=[extension],
    options={} if free_threaded else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
