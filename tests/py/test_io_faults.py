"""System calls that fail: each call of each kind in turn, in small runs of the tool. The exit status is
1 and the message names a path, or the run came through and its output is whole; there is never an
output that is not, nor a touched input, nor a left-over that was not itself the failure. Then the process
is killed at each of these calls, and the next run takes up what it left."""
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

import pytest

from conftest import BUILD, REPO, call, held, need, stale
from tool_models import environment, files_of, gaussian, good, plain_folder, sharded_folder

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="LD_PRELOAD of Linux")

# What each call can fail with; SHORT does half of the work. After a '+' the run must come through.
FAULTS = {
    "open": ["EIO", "EMFILE", "+EINTR"], "pread": ["EIO", "+EINTR", "+SHORT"],
    "pwrite": ["ENOSPC", "EIO", "+EINTR", "+SHORT"], "ftruncate": ["ENOSPC", "+EINTR"],
    "fsync": ["EIO", "ENOSPC", "+EINTR"], "close": ["EIO", "ENOSPC", "+EINTR"],
    "rename": ["EIO", "ENOSPC"], "renameat2": ["EIO", "ENOSPC", "+ENOSYS", "+EINVAL"],
    "mkdir": ["ENOSPC", "EACCES"], "unlink": ["EIO"], "rmdir": ["EIO"],
    "flock": ["EIO", "+EINTR", "+ENOSYS"], "opendir": ["EIO", "EMFILE"], "readdir": ["EIO"],
    "closedir": ["EIO"], "mmap": ["ENOMEM", "EIO"], "munmap": ["EINVAL"], "lseek": ["EIO"],
    "stat": ["EIO", "EACCES"], "fstat": ["EIO"], "readlink": ["EIO"], "realpath": ["EIO", "ENOMEM"],
    "ioctl": ["+EIO", "+EINVAL"], "link": ["EIO"], "write": ["EIO"],
}
REMOVING = {"unlink", "rmdir"}
# Tidying up looks around before it removes: when that fails, something may stay as well.
LOOKING = {"opendir", "readdir", "stat", "readlink"}


@pytest.fixture(scope="module")
def preload():
    need("gcc")
    source, target = REPO / "tests/c/preload_io.c", BUILD / "tools/preload_io.so"
    with held("tools"):
        if stale(target, [source]):
            target.parent.mkdir(exist_ok=True)
            call(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", source, "-o",
                  target, "-ldl"])
    return target


@pytest.fixture
def work():
    """A folder in memory, where there is one: syncs cost nothing there."""
    memory = pathlib.Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="aq-io-", dir=memory if memory.is_dir() else None) as path:
        yield pathlib.Path(path)


def make_inputs(aq, work):
    source = work / "in"
    source.mkdir()
    tensors = {f"model.layers.{b}.q_proj.weight": gaussian(b, 8, 64, dtype="float16") for b in (1, 2)}
    tensors["model.norm.weight"] = gaussian(3, 8, dtype="float16")
    folder = sharded_folder(source / "sharded", tensors, 2)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "extra").mkdir()
    (folder / "extra/vocab.txt").write_text("a\nb\n")
    plain_folder(source / "plain", tensors)
    shutil.copy(source / "plain/model.safetensors", source / "one.safetensors")
    good(aq, "quantize", folder, source / "q", "--group-size", 32, "--quiet", "--threads", 1)


QUANTIZE = ["--group-size", "32", "--threads", "1", "--quiet"]
RUNS = {  # arguments; the output, "" for none
    "quantize": (["quantize", "in/sharded", "out", *QUANTIZE], "out"),
    "quantize one file": (["quantize", "in/one.safetensors", "out.safetensors", *QUANTIZE],
                          "out.safetensors"),
    "overwrite": (["quantize", "in/plain", "out", "--overwrite", *QUANTIZE], "out"),
    "dequantize": (["dequantize", "in/q", "out", "--quiet", "--threads", "1"], "out"),
    "validate": (["validate", "in/sharded", "in/q", "--json", "--threads", "1"], ""),
    "inspect": (["inspect", "in/q", "--verify", "--json", "--threads", "1"], ""),
}


def contents(path):
    """Whatever is there, without the report, which holds a time."""
    if path.is_file():
        return {"": path.read_bytes()}
    if not path.exists():
        return None
    return {name: data for name, data in files_of(path).items()
            if name != "arrowquant_report.json"}


class Prober:
    def __init__(self, aq, preload, work, name):
        self.aq, self.preload, self.work, self.name = aq, preload, work, name
        words, output = RUNS[name]
        self.arguments = [work / word if word.startswith(("in/", "out")) else word for word in words]
        self.output = work / output if output else None
        self.before = None  # the output that is overwritten
        make_inputs(aq, work)
        if name == "overwrite":
            good(aq, "quantize", work / "in/plain", work / "earlier", "--bits", 8, *QUANTIZE)
            self.before = contents(work / "earlier")
        self.prepare()
        done = self.run(AQ_IO_COUNTS=str(work / "counts"))
        assert done.returncode == 0, done.stderr
        self.wanted, self.stdout = self.found(), done.stdout
        self.input = files_of(work / "in")
        lines = (work / "counts").read_text().splitlines()
        self.counts = {line.split()[0]: int(line.split()[1]) for line in lines}
        (work / "counts").unlink()
        self.report_exists = self.output and (self.output / "arrowquant_report.json").is_file()

    def found(self):
        return contents(self.output) if self.output else None

    def prepare(self):
        if self.output is None:
            return
        if self.output.is_dir():
            shutil.rmtree(self.output)
        self.output.unlink(missing_ok=True)
        if self.before is not None:
            shutil.copytree(self.work / "earlier", self.output)

    def run(self, *words, **env):
        return subprocess.run([self.aq, *self.arguments, *words], cwd=self.work, capture_output=True,
                              text=True, stdin=subprocess.DEVNULL, timeout=60,
                              env=environment(LD_PRELOAD=str(self.preload), **env))

    def left_overs(self):
        return sorted(path.name for path in self.work.iterdir() if "tmp-" in path.name)

    def clean(self):
        for name in self.left_overs():
            path = self.work / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def fault(self, function, number, fault):
        """What is wrong after this fault, or None; and whether the run came through."""
        self.prepare()
        done = self.run(AQ_IO_CALL=function, AQ_IO_NTH=str(number), AQ_IO_FAULT=fault.lstrip("+"))
        problem, came_through = None, done.returncode == 0
        found, left = self.found(), self.left_overs()
        if done.returncode not in (0, 1):
            problem = "it crashed"
        elif came_through and (found != self.wanted or (not self.output and
                                                        done.stdout != self.stdout)):
            problem = "the output differs"
        elif not came_through and fault.startswith("+"):
            problem = "it should have come through"
        elif not came_through and not any(line.startswith("aq: ") and "/" in line
                                          for line in done.stderr.splitlines()):
            problem = "the message names no path"
        elif self.output and found not in (self.wanted, self.before):
            problem = "an output that is not whole"
        elif came_through and self.report_exists and not (
                self.output / "arrowquant_report.json").is_file():
            problem = "the report is missing"
        elif left and function not in REMOVING | LOOKING:
            problem = f"left over: {left}"
        elif left:  # the next run tidies up
            self.prepare()
            again = self.run()
            if again.returncode or self.left_overs():
                problem = f"the next run leaves {self.left_overs()}: {again.stderr}"
        if problem:
            self.clean()
            return f"{self.name}: {function} {number} {fault}: {problem}: {done.stderr.strip()}", True
        return None, came_through


@pytest.mark.parametrize("name", RUNS)
def test_each_call_fails_in_turn(aq, preload, work, name, record_property):
    prober = Prober(str(aq), preload, work, name)
    problems, faults, through = [], 0, 0
    for function, kinds in FAULTS.items():
        for fault in kinds:
            for number in range(1, prober.counts[function] + 1):
                problem, came_through = prober.fault(function, number, fault)
                faults += 1
                through += came_through
                if problem:
                    problems.append(problem)
    if files_of(work / "in") != prober.input:
        problems.append("the input was touched")
    record_property("figure", f"{name}: {faults} I/O faults injected, {through} survived, "
                              f"{faults - through} reported, {len(problems)} problems")
    assert not problems, f"{len(problems)} of {faults}\n" + "\n".join(problems[:40])
    assert faults > 60


def killed_at(prober, function, number):
    """What is wrong after a kill at this call and a run with --resume; and whether that had finished
    shards to take up."""
    prober.prepare()
    done = prober.run(AQ_IO_CALL=function, AQ_IO_NTH=str(number), AQ_IO_FAULT="KILL")
    where, found = f"{function} {number}", prober.found()
    journals = list(prober.work.glob(".out*.aq-tmp-*/.aq-journal"))
    if done.returncode != -signal.SIGKILL:
        return f"{where}: exit status {done.returncode}", False
    if found not in (prober.wanted, prober.before):
        return f"{where}: an output that is not whole", False
    if found is not None and prober.before is None:
        prober.prepare()  # it had come to its end: the next run may not find it
    again = prober.run("--resume")
    if again.returncode or prober.found() != prober.wanted or prober.left_overs():
        return f"{where}: the next run: {again.stderr}, left over: {prober.left_overs()}", False
    return None, bool(journals)


@pytest.mark.parametrize("name", ["quantize", "quantize one file", "overwrite"])
def test_killed_at_each_call(aq, preload, work, name, record_property):
    prober = Prober(str(aq), preload, work, name)
    problems, kills, resumed = [], 0, 0
    for function in FAULTS:
        for number in range(1, prober.counts[function] + 1):
            problem, taken = killed_at(prober, function, number)
            kills += 1
            resumed += taken
            if problem:
                problems.append(problem)
                prober.clean()
    if files_of(work / "in") != prober.input:
        problems.append("the input was touched")
    record_property("figure", f"{name}: {kills} kills, one at each system call, {resumed} of them after a finished "
                              f"shard; {len(problems)} problems")
    assert not problems, f"{len(problems)} of {kills}\n" + "\n".join(problems[:40])
    assert kills > 60 and (resumed > 0) == (name == "quantize")
