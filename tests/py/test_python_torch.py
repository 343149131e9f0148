"""The PyTorch part of the Python module: statistics recorded from a running pipeline against those of
the fixtures, runs calibrated with them, and weights put back."""
import functools
import threading

import numpy as np
import pytest

import dit

torch = pytest.importorskip("torch", reason="torch is not installed (requirements-heavy.txt)")
from safetensors.numpy import load_file  # noqa: E402
from torch import nn  # noqa: E402

import torch_dit  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def recorder(module):
    from arrowquant.torch import Recorder
    return Recorder


def check_statistics(found):
    reference = dit.load(dit.REFERENCE / "activations.safetensors")
    names = {name.rpartition(".")[0] for name in reference if name.endswith(".act_mean")}
    assert len(names) == 39 and "pos_embed.proj" in names
    for name in names:
        timesteps = found.get(f"{name}.act_timesteps", found.get("timesteps"))
        assert np.array_equal(timesteps, reference["timesteps"]), name
        for kind in ("min", "max", "mean", "std"):
            expected = reference[f"{name}.act_{kind}"]
            worst = np.abs(found[f"{name}.act_{kind}"] - expected).max()
            assert worst <= 1e-3 * np.abs(expected).max(), (name, kind)
        for kind in ("absmax", "sqmean"):  # F16 in the fixture
            expected = reference[f"{name}.act_{kind}"].astype(np.float32)
            np.testing.assert_allclose(found[f"{name}.act_{kind}"].astype(np.float32), expected,
                                       rtol=4e-3, atol=2e-3 * expected.max())


def check_second_moments(found):
    reference = dit.load(dit.REFERENCE / "hessians.safetensors")
    shared = [name for name in reference if name in found or name + ".hessian" in found]
    assert len(shared) == 12, sorted(found)[:8]
    for name in shared:
        ours = found.get(name, found.get(name + ".hessian"))
        assert np.abs(ours - reference[name]).max() <= 2e-3 * np.abs(reference[name]).max(), name


def check_markov(metrics):
    assert set(metrics) >= {"smoothness_score", "violation_count", "is_valid", "boundary_scores",
                            "violations"}
    assert 0.5 < metrics["smoothness_score"] < 1 and len(metrics["boundary_scores"]) == 9
    assert metrics["violation_count"] == len(metrics["violations"]) > 0 and not metrics["is_valid"]
    assert all(0 <= score <= 1 for score in metrics["boundary_scores"])
    for violation in metrics["violations"]:
        assert violation["scale_jump"] > 0.1 and 0 <= violation["boundary_idx"] < 9
        assert violation["severity"] == ("high" if violation["scale_jump"] > .5 else
                                         "medium" if violation["scale_jump"] > .3 else "low")


def test_recorded_run(module, recorder, digits, tmp_path):
    """The reference run, recorded as a user would: the samples do not change, the statistics are
    those of the fixtures, a run takes the file, and the quantizer then knows how smooth it is."""
    noise, classes = dit.reference_noise()
    pipe, path = torch_dit.Pipeline(), tmp_path / "calibration.safetensors"
    few = [f"transformer_blocks.{i}.{name}" for i in range(4) for name in (
        "attn1.to_q", "attn1.to_out.0", "norm1.linear")]
    with recorder(pipe, path), recorder(pipe, tmp_path / "few", layers=few, second_moments=True):
        samples = pipe(noise, classes)
    assert not any(layer._forward_pre_hooks for layer in pipe.transformer.modules())
    reference = dit.load(dit.REFERENCE / "vectors.safetensors")["ddim.samples"]
    assert np.abs(samples - reference).max() < 1e-4
    found = load_file(path)
    check_statistics(found)
    check_second_moments(load_file(tmp_path / "few"))

    quantizer = module.ArrowQuantV2()
    assert quantizer.get_markov_metrics() is None
    config = module.DiffusionQuantConfig(calibration=[str(path)], num_time_groups=10,
                                         thermodynamic_validation_smoothness_threshold=0.1)
    result = quantizer.quantize_diffusion_model(digits, tmp_path / "out", config)
    assert result["layers_quantized"] > 20
    check_markov(quantizer.get_markov_metrics())


def diffusers_pipeline(monkeypatch, noise):
    """diffusers' own DiTPipeline of the bundled model, with an image decoder of no meaning, whose
    samples begin with this noise. Its steps go on with the clamped sample, as those of the reference."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    from diffusers.pipelines.dit import pipeline_dit
    monkeypatch.setattr(pipeline_dit, "randn_tensor", lambda **options: torch.from_numpy(noise))
    transformer = diffusers.DiTTransformer2DModel.from_pretrained(dit.DIGITS / "transformer",
                                                                  torch_dtype=torch.float32)
    scheduler = diffusers.DDIMScheduler.from_pretrained(dit.DIGITS / "scheduler")
    scheduler.step = functools.partial(scheduler.step, use_clipped_model_output=True)
    vae = diffusers.AutoencoderKL(in_channels=1, out_channels=1, latent_channels=1, norm_num_groups=1,
                                  block_out_channels=(4,))
    pipe = diffusers.DiTPipeline(transformer=transformer.eval(), vae=vae.eval(), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_diffusers_pipeline_as_it_is(recorder, tmp_path, monkeypatch):
    """diffusers' own classes, called as their users call them, show what our pipeline shows."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    noise, classes = dit.reference_noise()
    noise, classes = noise[:8], classes[:8]
    theirs = diffusers_pipeline(monkeypatch, noise)
    with recorder(theirs, tmp_path / "theirs"):
        theirs(class_labels=classes.tolist(), num_inference_steps=10, guidance_scale=1.0, output_type="np")
    ours = torch_dit.Pipeline()
    ours.scheduler = torch_dit.Scheduler(dit.DIGITS / "scheduler", 10)
    with recorder(ours, tmp_path / "ours"):
        ours(noise, classes)
    theirs, ours = load_file(tmp_path / "theirs"), load_file(tmp_path / "ours")
    assert set(theirs) == set(ours) and len(ours) > 39 * 6
    for name in ours:
        if name.endswith("sketch"):  # a value near the edge of a cell may fall to either side
            continue
        a, b = (np.asarray(file[name], "f8") for file in (theirs, ours))
        assert np.abs(a - b).max() <= 4e-3 * np.abs(b).max(), name


def test_where_the_timestep_comes_from(recorder, tmp_path):
    """Argument, name, callable, scheduler: the same file."""
    noise, classes = dit.reference_noise()
    noise, classes = noise[:2], classes[:2]
    pipe = torch_dit.Pipeline()
    now = []
    step = pipe.scheduler.step

    def told(index):
        return pipe.scheduler.timesteps[pipe.scheduler.step_index]
    ways = {"argument": None, "name": "timestep", "callable": lambda: told(now),
            "scheduler": pipe.scheduler}
    files = []
    for way, source in ways.items():
        with recorder(pipe.transformer, tmp_path / way, timestep=source, layers=["proj_out_1"]):
            pipe(noise, classes)
        files.append((tmp_path / way).read_bytes())
    assert all(file == files[0] for file in files) and step


def test_each_sample_may_have_its_own(recorder, tmp_path):
    """A batch of several timesteps gives what batches of one give."""
    pipe = torch_dit.Pipeline()
    x = torch.from_numpy(dit.fresh_noise(3, 6)[0])
    labels = torch.arange(6)
    times = torch.tensor([40, 900, 40, 500, 900, 40])
    with torch.no_grad(), recorder(pipe.transformer, tmp_path / "mixed"):
        pipe.transformer(x, timestep=times, class_labels=labels)
    with torch.no_grad(), recorder(pipe.transformer, tmp_path / "apart"):
        for t in (40, 500, 900):
            mine = times == t
            pipe.transformer(x[mine], timestep=times[mine], class_labels=labels[mine])
    mixed, apart = load_file(tmp_path / "mixed"), load_file(tmp_path / "apart")
    assert set(mixed) == set(apart)
    for name in mixed:
        if name.endswith("sketch"):  # a value near the edge of a cell may fall to either side
            a, b = (np.asarray(file[name], "i8") for file in (mixed, apart))
            assert a.sum() == b.sum() and np.abs(a - b).sum() <= 0.02 * a.sum()
            continue
        np.testing.assert_allclose(np.asarray(mixed[name], "f8"), np.asarray(apart[name], "f8"),
                                   rtol=2e-3, atol=1e-4, err_msg=name)


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 5, 3, stride=2, padding=1, dilation=2)
        self.b = nn.Conv1d(4, 6, 5, padding="same", padding_mode="circular")
        self.c = nn.Conv3d(2, 3, (1, 2, 3))

    def forward(self, x, y, z, t):
        return self.a(x), self.b(y), self.c(z)


def test_convolutions(recorder, tmp_path):
    """The recorded rows are those whose product with the weight matrix is the layer's output."""
    torch.manual_seed(1)
    model = Convolutions()
    inputs = [torch.randn(2, 3, 9, 7), torch.randn(2, 4, 11), torch.randn(2, 2, 3, 4, 5)]
    seen = {}
    record = recorder(model, tmp_path / "file", second_moments=True)
    feed = record._observer

    class Spy:
        def feed(self, name, t, rows):
            seen[name] = rows
            feed.feed(name, t, rows)

        def save(self, path):
            feed.save(path)
    record._observer = Spy()
    with torch.no_grad(), record:
        outputs = model(*inputs, t=7.9)
    for name, output in zip("abc", outputs):
        layer = getattr(model, name)
        product = seen[name] @ layer.weight.flatten(1).T + layer.bias
        expected = output.movedim(1, -1).reshape(-1, output.shape[1])
        torch.testing.assert_close(product, expected, rtol=1e-4, atol=1e-5)
    found = load_file(tmp_path / "file")
    times = [v for k, v in found.items() if k.endswith("timesteps")]
    assert all(list(t) == [7] for t in times)


def test_recorder_errors(recorder, module):
    with pytest.raises(TypeError, match="pipeline"):
        recorder(object())
    with pytest.raises(TypeError, match="no Linear"):
        recorder(nn.ReLU())
    with pytest.raises(ValueError, match="'nope'"):
        recorder(nn.Sequential(nn.Linear(2, 2)), layers=["nope"])
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(TypeError, match="timestep"), recorder(model):
        model(torch.zeros(1, 4))
    assert not model._forward_pre_hooks and not model[0]._forward_pre_hooks
    with recorder(model, timestep=lambda: 3):
        model(torch.zeros(0, 4))
        with pytest.raises(module.ArrowQuantError):
            model(torch.full((1, 4), torch.nan))


def test_recording_does_not_disturb_training(recorder, tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1)).bfloat16()
    x = torch.randn(16, 8, dtype=torch.bfloat16, requires_grad=True)
    with recorder(model, tmp_path / "file", timestep=lambda: 0.5, scale=1000):
        model(x).sum().backward()
    assert x.grad is not None and model[0].weight.grad is not None
    found = load_file(tmp_path / "file")
    times = [v for k, v in found.items() if k.endswith("timesteps")]
    assert times and all(list(t) == [500] for t in times)


def test_load_into(module, digits, tmp_path):
    """The module then draws what the quantized model draws."""
    from arrowquant.torch import load_into
    module.quantize_diffusion_model(digits, tmp_path / "q8", module.DiffusionQuantConfig(bit_width=8))
    noise, classes = dit.reference_noise()
    plain, pipe = torch_dit.Pipeline(), torch_dit.Pipeline()
    done = load_into(pipe.transformer, tmp_path / "q8")
    assert set(done) == set(pipe.transformer.state_dict())
    with module.load_model(tmp_path / "q8") as model:
        for name, value in pipe.transformer.state_dict().items():
            np.testing.assert_array_equal(value.numpy(), model[name].dequantize().numpy())
    a, b = plain(noise[:8], classes[:8]), pipe(noise[:8], classes[:8])
    error = np.mean((a - b) ** 2)
    assert 0 < error and 10 * np.log10(4 / error) > 45
    half = torch_dit.Pipeline().transformer.bfloat16()
    load_into(half, tmp_path / "q8")
    assert half.proj_out_1.weight.dtype == torch.bfloat16
    with pytest.raises(KeyError):
        load_into(nn.Linear(2, 2), tmp_path / "q8")
    assert load_into(nn.Linear(2, 2), tmp_path / "q8", strict=False) == []
    wrong = torch_dit.Pipeline().transformer
    wrong.proj_out_2 = nn.Linear(3, 3)
    with pytest.raises(module.ShapeMismatchError, match="proj_out_2"):
        load_into(wrong, tmp_path / "q8", strict=False)


def test_observer(module, tmp_path):
    """Fed by many threads, loaded and added to: the figures of all rows together."""
    x = np.random.default_rng(1).standard_normal((80, 6)).astype("f4")
    observer = module.Observer()
    threads = [threading.Thread(target=observer.feed, args=("l", 3, x[i * 10:i * 10 + 10]))
               for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    observer.save(tmp_path / "a.safetensors")
    second = module.Observer()
    second.feed("l", 3, torch.from_numpy(x[40:]).reshape(2, 20, 6))
    second.load(tmp_path / "a.safetensors")
    second.save(tmp_path / "b.safetensors")
    found = load_file(tmp_path / "b.safetensors")
    assert found["l.act_min"][0] == x.min() and found["l.act_max"][0] == x.max()
    assert abs(found["l.act_mean"][0] - x.mean()) < 1e-6
    np.testing.assert_allclose(found["l.act_sqmean"][0], (x.astype("f8") ** 2).mean(0), rtol=2e-3)
