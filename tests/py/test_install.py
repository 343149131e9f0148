"""`make install`, then what a C project does with it: pkg-config, CMake; and each example runs."""

import shutil
import subprocess

import pytest

from conftest import LIBS, WARNINGS, link_example


def call(command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                          timeout=300, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def prefix(repo, aq, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prefix")
    call(["make", "-C", repo, "install", f"PREFIX={folder}"])
    return folder


def test_what_is_installed(prefix, repo):
    assert sorted(p.relative_to(prefix).as_posix() for p in prefix.rglob("*") if p.is_file()) == [
        "bin/aq", "include/arrowquant.h", "include/arrowquant_simd.h",
        "lib/cmake/arrowquant/arrowquantConfig.cmake",
        "lib/cmake/arrowquant/arrowquantConfigVersion.cmake", "lib/pkgconfig/arrowquant.pc"]
    assert (prefix / "include/arrowquant.h").read_bytes() == (repo / "arrowquant.h").read_bytes()
    assert not any("@" in p.read_text() for p in (prefix / "lib").rglob("*.pc"))


def test_destdir(repo, aq, tmp_path):
    call(["make", "-C", repo, "install", "PREFIX=/usr", f"DESTDIR={tmp_path}"])
    text = (tmp_path / "usr/lib/pkgconfig/arrowquant.pc").read_text()
    assert "prefix=/usr\n" in text and str(tmp_path) not in text


def test_pkg_config(prefix, repo, tmp_path):
    if not shutil.which("pkg-config"):
        pytest.skip("no pkg-config here")
    shutil.copytree(repo / "examples/installed", tmp_path / "project")
    call(["make", "-C", tmp_path / "project", "CFLAGS="],
         env={"PATH": "/usr/bin:/bin", "PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig")})
    assert "SQNR" in call([tmp_path / "project/ramp"])


def test_cmake(prefix, repo, tmp_path):
    if not shutil.which("cmake"):
        pytest.skip("no cmake here")
    source = repo / "examples/installed"
    call(["cmake", "-S", source, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={prefix}"])
    call(["cmake", "--build", tmp_path])
    assert "SQNR" in call([tmp_path / "ramp"])
    for version, found in (("0.1.0", True), ("0.2", False), ("1.0", False)):
        text = (source / "CMakeLists.txt").read_text().replace("arrowquant 0.1 ", f"arrowquant {version} ")
        folder = tmp_path / version
        folder.mkdir()
        shutil.copy(source / "main.c", folder)
        (folder / "CMakeLists.txt").write_text(text)
        done = subprocess.run(["cmake", "-S", folder, "-B", folder / "b",
                               f"-DCMAKE_PREFIX_PATH={prefix}"], capture_output=True, timeout=300)
        assert (done.returncode == 0) == found, version


@pytest.mark.parametrize("name", ["minimal.c", "progress.c", "quantize_tensor.c", "embedded.c", "cpp.cpp"])
def test_each_example_compiles_without_a_warning_and_runs(repo, digits, tmp_path, name):
    """Two of them are compiled with the library in them; test_builds.py checks that the others can be."""
    if name in ("embedded.c", "cpp.cpp"):
        compiler = ["c++", "-std=c++11"] if name.endswith(".cpp") else ["cc", "-std=c99"]
        call([*compiler, *WARNINGS, repo / "examples" / name, "-o", tmp_path / "program", *LIBS])
    else:
        link_example(name, tmp_path / "program", "-std=c99", *WARNINGS)
    arguments = {"minimal.c": [digits, tmp_path / "out"], "cpp.cpp": [digits, tmp_path / "out"],
                 "progress.c": [digits, tmp_path / "out", 60]}.get(name, [])
    done = subprocess.run([tmp_path / "program", *map(str, arguments)], capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr
    assert not arguments or (tmp_path / "out/arrowquant_report.json").is_file()
