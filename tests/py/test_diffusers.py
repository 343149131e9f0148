"""GGUF files of diffusers models: under the names that the original checkpoints have, as diffusers'
own conversion reads them; and a model that it loads and runs."""
import functools
import json
import os
import subprocess

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = pytest.importorskip("torch", reason="torch is not installed")
diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
from diffusers.loaders import single_file_utils as conversion  # noqa: E402
from diffusers.quantizers.gguf import utils  # noqa: E402

FLUX = {"patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 2,
        "attention_head_dim": 32, "num_attention_heads": 8, "joint_attention_dim": 256,
        "pooled_projection_dim": 32, "guidance_embeds": True, "axes_dims_rope": [8, 12, 12]}
SD3 = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 2,
       "attention_head_dim": 16, "num_attention_heads": 4, "joint_attention_dim": 32,
       "caption_projection_dim": 64, "pooled_projection_dim": 32, "out_channels": 4,
       "pos_embed_max_size": 12, "dual_attention_layers": [0], "qk_norm": "rms_norm"}
WAN = {"patch_size": [1, 2, 2], "num_attention_heads": 2, "attention_head_dim": 32,
       "in_channels": 4, "out_channels": 4, "text_dim": 32, "freq_dim": 32, "ffn_dim": 64,
       "num_layers": 2, "cross_attn_norm": True, "image_dim": 32, "added_kv_proj_dim": 64,
       "rope_max_seq_len": 32}
SD1 = {"sample_size": 8, "block_out_channels": [32, 64], "layers_per_block": 2,
       "cross_attention_dim": 32, "attention_head_dim": 4, "norm_num_groups": 8,
       "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
       "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}
SDXL = {"sample_size": 8, "block_out_channels": [32, 64, 64], "layers_per_block": 2,
        "cross_attention_dim": 32, "attention_head_dim": [2, 4, 4], "norm_num_groups": 8,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True, "transformer_layers_per_block": [1, 1, 2],
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64}


def run(aq, *words):
    done = subprocess.run([aq, *map(str, words)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def model_of(name, config, seed=0):
    torch.manual_seed(seed)
    model = getattr(diffusers, name)(**config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too: all differ
            parameter.copy_(torch.randn_like(parameter) * 0.05)
    return model


def read(path):
    return {t.name: (t.tensor_type.name, torch.from_numpy(
        gguf.quants.dequantize(t.data, t.tensor_type).reshape(
            tuple(int(n) for n in reversed(t.shape))).copy()))
        for t in gguf.GGUFReader(path).tensors}


def flux_to_diffusers(state, config):
    """diffusers' function knows the large model's width; this one is narrower."""
    import inspect
    source = inspect.getsource(conversion.convert_flux_transformer_checkpoint_to_diffusers)
    width = config["attention_head_dim"] * config["num_attention_heads"]
    assert "inner_dim = 3072" in source
    space = dict(vars(conversion))
    exec(source.replace("inner_dim = 3072", f"inner_dim = {width}"), space)
    return space["convert_flux_transformer_checkpoint_to_diffusers"](state)


def unet_to_diffusers(state, config):
    prefixed = {"model.diffusion_model." + name: value for name, value in state.items()}
    return conversion.convert_ldm_unet_checkpoint(prefixed, config)


FAMILIES = {
    "flux": ("FluxTransformer2DModel", FLUX, flux_to_diffusers),
    "sd3": ("SD3Transformer2DModel", SD3,
            lambda state, _: conversion.convert_sd3_transformer_checkpoint_to_diffusers(state)),
    "wan": ("WanTransformer3DModel", WAN,
            lambda state, _: conversion.convert_wan_transformer_to_diffusers(state)),
    "sd1": ("UNet2DConditionModel", SD1, unet_to_diffusers),
    "sdxl": ("UNet2DConditionModel", SDXL, unet_to_diffusers),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_original_names(aq, tmp_path, family):
    """What diffusers makes of our file is the model that we were given, name by name."""
    name, config, convert = FAMILIES[family]
    model = model_of(name, config)
    model.save_pretrained(tmp_path / "model", max_shard_size="300KB")
    out = tmp_path / "out.gguf"
    told = run(aq, "quantize", tmp_path / "model", out, "--format", "gguf", "--gguf-type", "F32")
    assert f"architecture {family}" in told and "have no original name" not in told
    fields = {f.name: f.contents() for f in gguf.GGUFReader(out).fields.values()}
    assert fields["general.architecture"] == family
    state = model.state_dict()
    ours = convert({name: values for name, (_, values) in read(out).items()}, config)
    assert set(ours) == set(state)
    for key, wanted in state.items():
        assert torch.equal(ours[key], wanted.float()), key


def test_flux_loads_and_runs(aq, tmp_path, monkeypatch):
    """from_single_file on our file, and the same model with our dequantized weights."""
    from diffusers.loaders import single_file_model
    known = single_file_model.SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]
    monkeypatch.setitem(known, "checkpoint_mapping_fn",  # the large model's width is a constant there
                        lambda checkpoint, **_: flux_to_diffusers(checkpoint, FLUX))
    model = model_of("FluxTransformer2DModel", FLUX, seed=2)
    model.save_pretrained(tmp_path / "model")
    for words in (("--bits", "4"), ("--gguf-type", "Q8_0"), ("--gguf-type", "Q2_K")):
        out, back = tmp_path / "flux.gguf", tmp_path / "back.safetensors"
        run(aq, "quantize", tmp_path / "model", out, "--format", "gguf", "--overwrite", "--quiet",
            *words)
        run(aq, "dequantize", out, back, "--quiet", "--overwrite")
        loaded = diffusers.FluxTransformer2DModel.from_single_file(
            str(out), config=str(tmp_path / "model"), torch_dtype=torch.float32,
            quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=torch.float32))
        kinds = {kind for kind, _ in read(out).values()}
        assert kinds & {"Q4_K", "Q8_0", "Q2_K"}
        from safetensors.torch import load_file
        plain = diffusers.FluxTransformer2DModel(**FLUX).eval()
        plain.load_state_dict(flux_to_diffusers(load_file(back), FLUX))
        torch.manual_seed(3)
        inputs = {"hidden_states": torch.randn(1, 16, 16),
                  "encoder_hidden_states": torch.randn(1, 6, 256),
                  "pooled_projections": torch.randn(1, 32), "timestep": torch.tensor([0.7]),
                  "guidance": torch.tensor([3.5]), "img_ids": torch.zeros(16, 3),
                  "txt_ids": torch.zeros(6, 3), "return_dict": False}
        with torch.no_grad():
            as_it_is, ours = loaded(**inputs)[0], plain(**inputs)[0]
            first = model(**inputs)[0]
            with monkeypatch.context() as patch:  # its decoders compute in half unless told
                for kind, decode in list(utils.dequantize_functions.items()):
                    patch.setitem(utils.dequantize_functions, kind,
                                  functools.partial(decode, dtype=torch.float32))
                theirs = loaded(**inputs)[0]
        most = ours.abs().max().item()
        assert (theirs - ours).abs().max().item() < 1e-5 * most
        assert (as_it_is - ours).abs().max().item() < 1e-2 * most  # rounding to half
        assert (first - ours).abs().max().item() > 1e-3 * most     # it has been quantized


def test_gates_raise_a_stack_together(aq, tmp_path):
    """q, k and v lie in one tensor: when one of them needs more bits, all of them get more."""
    model = model_of("FluxTransformer2DModel", FLUX, seed=5)
    with torch.no_grad():
        weight = model.single_transformer_blocks[0].attn.to_k.weight
        tails = torch.distributions.Laplace(0.0, 0.05)  # harder to quantize than Gaussian weights
        weight.copy_(tails.sample(weight.shape))
    model.save_pretrained(tmp_path / "model", max_shard_size="300KB")
    out = tmp_path / "out.gguf"
    run(aq, "quantize", tmp_path / "model", out, "--format", "gguf", "--quiet", "--bits", "2",
        "--min-sqnr-db", "11.2")
    ours = read(out)
    assert ours["single_blocks.0.linear1.weight"][0] != "Q2_K"
    assert ours["single_blocks.1.linear1.weight"][0] == "Q2_K"
    state = model.state_dict()
    rows = torch.cat([state[f"single_transformer_blocks.0.{part}.weight"] for part in
                      ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")])
    error = ((ours["single_blocks.0.linear1.weight"][1] - rows) ** 2).sum() / (rows ** 2).sum()
    assert -10 * np.log10(error.item()) > 11.2
    report = json.loads(run(aq, "quantize", tmp_path / "model", "--format", "gguf", "--dry-run",
                            "--json"))
    names = {t["name"]: t.get("output_name", t["name"]) for t in report["tensors"]}
    assert names["single_transformer_blocks.0.attn.to_k.weight"] == "single_blocks.0.linear1.weight"
