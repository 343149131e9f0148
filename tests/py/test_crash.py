"""Kills, full disks, read-only targets, two runs at once: an output is whole or absent, the input
and an earlier output are never touched, the next run cleans up, `--resume` takes up."""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

SHARDS, ROWS, COLS = 6, 1024, 2048  # 12.6 million weights: some 0.2 s, so that kills hit each phase


def tree(folder):
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crash") / "model"
    folder.mkdir()
    rng = np.random.default_rng(3)
    weight_map = {}
    for s in range(SHARDS):
        name = f"model-{s + 1:05d}-of-{SHARDS:05d}.safetensors"
        tensors = {f"blocks.{s}.w.weight": rng.standard_normal((ROWS, COLS), dtype=np.float32) * 0.02,
                   f"blocks.{s}.w.bias": rng.standard_normal(ROWS, dtype=np.float32)}
        weight_map.update(dict.fromkeys(tensors, name))
        save_file(tensors, str(folder / name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("x" * 100000)
    return folder


@pytest.fixture(scope="module")
def reference(aq, model):
    """What an undisturbed run gives, and how long it takes."""
    out = model.parent / "reference"
    begin = time.monotonic()
    assert subprocess.run([aq, "quantize", model, out, "--quiet"]).returncode == 0
    return tree(out), time.monotonic() - begin


def start(aq, model, out, *flags):
    return subprocess.Popen([aq, "quantize", model, out, "--quiet", *flags], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_kill_at_50_random_moments(aq, model, reference, tmp_path, record_property):
    whole, seconds = reference
    before = tree(model)
    random.seed(4)
    killed = finished = 0
    for _ in range(50):
        run = start(aq, model, tmp_path / "out")
        time.sleep(random.uniform(0, seconds * 1.1))
        run.kill()
        run.communicate()
        if (tmp_path / "out").exists():
            assert tree(tmp_path / "out") == whole  # visible means whole
            finished += 1
            subprocess.run(["rm", "-r", tmp_path / "out"], check=True)
        else:
            killed += 1
    assert killed >= 10
    run = start(aq, model, tmp_path / "out")
    assert run.wait(60) == 0
    assert names(tmp_path) == ["out"]  # the left-overs are gone
    assert tree(tmp_path / "out") == whole and tree(model) == before
    record_property("figure", f"{killed + finished} kills: {killed} before the commit, {finished} after it; "
                              "0 outputs that are not whole")


def test_kill_while_overwriting_keeps_old_or_new(aq, model, reference, tmp_path, record_property):
    whole, seconds = reference
    out = tmp_path / "out"
    assert subprocess.run([aq, "quantize", model, out, "--quiet", "--bits", "8"]).returncode == 0
    old = tree(out)
    random.seed(5)
    seen = []
    for _ in range(20):
        run = start(aq, model, out, "--overwrite")
        time.sleep(random.uniform(seconds * 0.5, seconds * 1.2))
        run.kill()
        run.communicate()
        now = tree(out)
        assert now in (old, whole)
        seen.append("old" if now == old else "new")
        if now != old:
            assert start(aq, model, out, "--overwrite", "--bits", "8").wait(60) == 0
    assert start(aq, model, out, "--overwrite").wait(60) == 0
    assert tree(out) == whole and names(tmp_path) == ["out"]
    record_property("figure", f"{len(seen)} kills of runs that overwrite: the old output {seen.count('old')} times, "
                              f"the new one {seen.count('new')} times, 0 mixtures")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_within_a_second_and_leave_nothing(aq, model, reference, tmp_path, number,
                                                        record_property):
    stopped = []
    for part in (0.1, 0.4, 0.7):
        run = start(aq, model, tmp_path / "out", "--threads", "1")
        time.sleep(reference[1] * part)
        run.send_signal(number)
        begin = time.monotonic()
        _, err = run.communicate(timeout=20)
        if run.returncode == 0:
            assert tree(tmp_path / "out") == reference[0]
            subprocess.run(["rm", "-r", tmp_path / "out"], check=True)
            continue
        stopped.append(time.monotonic() - begin)
        assert stopped[-1] < 1.5
        assert "cancelled" in err or "stopped" in err or "interrupt" in err.lower(), err
        assert names(tmp_path) == []
    record_property("figure", f"{signal.Signals(number).name}: {len(stopped)} of 3 runs stopped before their "
                              f"end, after {max(stopped, default=0):.2f} s at most; nothing left")


def killed_between_shards(aq, model, folder, *flags):
    """Leaves behind a run that had finished some shards, but not all."""
    for _ in range(20):
        run = start(aq, model, folder / "out", "--threads", "1", *flags)
        while run.poll() is None and not list(folder.glob(".out.aq-tmp-*/.aq-journal")):
            time.sleep(0.001)
        run.kill()
        run.communicate()
        if not (folder / "out").exists():
            return
        subprocess.run(["rm", "-r", folder / "out"], check=True)
    raise AssertionError("no run could be killed between two shards")


def resume(aq, model, out, *flags):
    done = subprocess.run([aq, "quantize", model, out, "--json", "--quiet", "--resume", *flags],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [n for n in json.loads(done.stdout)["notes"] if "take up" in n or "taken up" in n]


def test_resume_takes_up_finished_shards(aq, model, reference, tmp_path, record_property):
    taken = []
    for _ in range(6):
        killed_between_shards(aq, model, tmp_path)
        note, = resume(aq, model, tmp_path / "out")
        taken.append(int(note.split(":")[1].split()[0]))
        assert tree(tmp_path / "out") == reference[0]
        report = json.loads((tmp_path / "out/arrowquant_report.json").read_text())
        assert report["layers_quantized"] == SHARDS
        assert subprocess.run([aq, "inspect", tmp_path / "out", "--verify"],
                              capture_output=True).returncode == 0
        assert names(tmp_path) == ["out"]
        subprocess.run(["rm", "-r", tmp_path / "out"], check=True)
    assert min(taken) > 0, taken
    record_property("figure", f"{len(taken)} kills taken up, with {taken} of {SHARDS} shards finished")


def test_resume_believes_only_what_fits(aq, model, reference, tmp_path, record_property):
    """Another config, a changed input, a damaged shard or journal: made again."""
    killed_between_shards(aq, model, tmp_path, "--bits", "8")
    assert "nothing to take up" in resume(aq, model, tmp_path / "out")[0]
    assert tree(tmp_path / "out") == reference[0]
    for damage in ("cut", "scribble", "end of line", "input"):
        subprocess.run(["rm", "-r", tmp_path / "out"], check=True)
        killed_between_shards(aq, model, tmp_path)
        folder, = (p for p in tmp_path.glob(".out.aq-tmp-*") if p.is_dir())
        shard = folder / f"model-00001-of-{SHARDS:05d}.safetensors"
        if damage == "cut":
            os.truncate(shard, 1000)
        elif damage == "scribble":
            journal = folder / ".aq-journal"
            journal.write_text(journal.read_text().replace('"shard":0', '"shard":zero'))
        elif damage == "end of line":
            journal = folder / ".aq-journal"
            journal.write_text(re.sub(r"\d+\]\]\}\n", "-1]]}\n", journal.read_text(), count=1))
        else:
            os.utime(model / shard.name, (1, 1))
        assert "nothing to take up" in resume(aq, model, tmp_path / "out")[0]
        assert tree(tmp_path / "out") == reference[0]
    record_property("figure", "5 left-overs that do not fit: none taken up")


def test_resume_removes_what_was_half_written(aq, model, reference, tmp_path):
    """A kill may hit a text while it is written under another name, and the input may have changed
    what is carried over: only finished shards stay."""
    killed_between_shards(aq, model, tmp_path)
    folder, = (p for p in tmp_path.glob(".out.aq-tmp-*") if p.is_dir())
    (folder / ".aq-journal.tmp-123-0").write_text("half")
    (folder / "vocab.txt").write_text("no longer in the input")
    (folder / "more/below").mkdir(parents=True)
    (folder / "more/below/x.json").write_text("{}")
    (folder / f"model-{SHARDS:05d}-of-{SHARDS:05d}.safetensors").write_bytes(b"half")
    note, = resume(aq, model, tmp_path / "out")
    assert re.match(rf"taken up: [1-{SHARDS}] of {SHARDS} ", note), note
    assert tree(tmp_path / "out") == reference[0]


def test_resume_takes_up_trellises(aq, tmp_path, record_property):
    """What `auto` chose for finished shards, trellises by second moments here, is taken up as it was."""
    rng = np.random.default_rng(8)
    folder, moments, weight_map = tmp_path / "model", {}, {}
    folder.mkdir()
    for s in range(SHARDS):
        name = f"model-{s + 1:05d}-of-{SHARDS:05d}.safetensors"
        x = rng.standard_normal((512, 256)) @ (np.eye(256) + 0.1 * rng.standard_normal((256, 256)))
        moments[f"blocks.{s}.w"] = (x.T @ x / 512).astype(np.float32)
        save_file({f"blocks.{s}.w.weight": rng.standard_normal((256, 256), dtype=np.float32)}, str(folder / name))
        weight_map[f"blocks.{s}.w.weight"] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text("{}")
    save_file(moments, str(tmp_path / "moments.safetensors"))
    flags = ("--bits", "2", "--group-size", "256", "--trellis-states", "256", "--min-accuracy", "0",
             "--calibration", str(tmp_path / "moments.safetensors"))
    assert start(aq, folder, tmp_path / "whole", "--threads", "1", *flags).wait(60) == 0
    whole = tree(tmp_path / "whole")
    report = json.loads((tmp_path / "whole/arrowquant_report.json").read_text())
    assert [(t["method"], t["code"]) for t in report["tensors"]] == SHARDS * [("trellis", "trellis")]
    killed_between_shards(aq, folder, tmp_path, *flags)
    note, = resume(aq, folder, tmp_path / "out", *flags)
    taken = re.match(rf"taken up: ([1-{SHARDS}]) of {SHARDS} ", note)
    assert taken and tree(tmp_path / "out") == whole, note
    record_property("figure", f"{taken.group(1)} of {SHARDS} shards of trellises taken up")


def test_resume_without_a_left_over(aq, model, reference, tmp_path):
    assert resume(aq, model, tmp_path / "out") == []
    assert tree(tmp_path / "out") == reference[0]


def test_three_runs_to_one_output(aq, model, reference, tmp_path, record_property):
    for _ in range(5):
        runs = [start(aq, model, tmp_path / "out") for _ in range(3)]
        codes = sorted(run.wait(60) for run in runs)
        texts = [run.stderr.read() for run in runs]
        assert codes == [0, 1, 1], texts
        assert sum("exists already" in t for t in texts) == 2
        assert tree(tmp_path / "out") == reference[0] and names(tmp_path) == ["out"]
        subprocess.run(["rm", "-r", tmp_path / "out"], check=True)
    record_property("figure", "5 times 3 runs to one output: 5 won, 10 refused")


def test_a_full_disk(aq, model, reference, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk],
                      capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    try:
        done = subprocess.run([aq, "quantize", model, disk / "out", "--quiet"], capture_output=True,
                              text=True, timeout=60)
        assert done.returncode == 1 and "space" in done.stderr, done.stderr
        assert str(disk) in done.stderr
        assert names(disk) == []
        # an earlier output survives
        assert subprocess.run(["mount", "-o", "remount,size=12m", disk]).returncode == 0
        assert start(aq, model, disk / "out").wait(60) == 0
        old = tree(disk / "out")
        done = subprocess.run([aq, "quantize", model, disk / "out", "--quiet", "--overwrite", "--bits", "8"],
                              capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and "space" in done.stderr
        assert tree(disk / "out") == old and names(disk) == ["out"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_read_only_target(aq, model, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,ro", "none", disk],
                      capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    try:
        done = subprocess.run([aq, "quantize", model, disk / "out", "--quiet"], capture_output=True,
                              text=True, timeout=60)
        assert done.returncode == 1 and str(disk) in done.stderr and "read-only" in done.stderr.lower()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_symlinked_output_stays_a_link(aq, model, reference, tmp_path):
    (tmp_path / "real").mkdir()
    assert start(aq, model, tmp_path / "real/out").wait(60) == 0
    os.symlink(tmp_path / "real/out", tmp_path / "link")
    run = start(aq, model, tmp_path / "link")
    assert run.wait(60) == 1 and "exists already" in run.stderr.read()
    assert start(aq, model, tmp_path / "link", "--overwrite", "--bits", "8").wait(60) == 0
    assert (tmp_path / "link").is_symlink() and names(tmp_path / "real") == ["out"]
    assert tree(tmp_path / "real/out") != reference[0]
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling")
    run = start(aq, model, tmp_path / "dangling")
    assert run.wait(60) == 1 and "link" in run.stderr.read()
    assert (tmp_path / "dangling").is_symlink()


def test_output_inside_or_equal_to_the_input(aq, model, tmp_path):
    before = tree(model)
    os.symlink(model, tmp_path / "alias")
    for out in (model, model / "out", model.parent, tmp_path / "alias", tmp_path / "alias/out"):
        run = start(aq, model, out, "--overwrite")
        assert run.wait(60) == 1, out
        assert "input" in run.stderr.read()
    assert tree(model) == before
