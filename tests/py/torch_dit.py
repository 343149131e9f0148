"""The bundled digits DiT as a PyTorch module with the names of diffusers, and a pipeline around it."""
import json
import math

import numpy as np
import torch
from torch import nn

import dit


def part(**children):
    """A module that only holds others."""
    made = nn.Module()
    for name, child in children.items():
        made.add_module(name, child)
    return made


class Block(nn.Module):
    def __init__(self, width, heads, classes, epsilon):
        super().__init__()
        self.heads, self.epsilon = heads, epsilon
        table = nn.Embedding(classes + 1, width)
        self.norm1 = part(
            emb=part(timestep_embedder=part(linear_1=nn.Linear(256, width),
                                            linear_2=nn.Linear(width, width)),
                     class_embedder=part(embedding_table=table)),
            linear=nn.Linear(width, 6 * width))
        self.attn1 = part(to_q=nn.Linear(width, width), to_k=nn.Linear(width, width),
                          to_v=nn.Linear(width, width),
                          to_out=nn.ModuleList([nn.Linear(width, width)]))
        self.ff = part(net=nn.ModuleList([part(proj=nn.Linear(width, 4 * width)), nn.Identity(),
                                          nn.Linear(4 * width, width)]))

    def conditioning(self, timestep, labels):
        embedder = self.norm1.emb.timestep_embedder
        angle = timestep.float()[:, None] * torch.exp(
            -math.log(10000) * torch.arange(128, dtype=torch.float32) / 127)
        wave = embedder.linear_1(torch.cat([angle.cos(), angle.sin()], 1))
        wave = embedder.linear_2(nn.functional.silu(wave))
        return nn.functional.silu(wave + self.norm1.emb.class_embedder.embedding_table(labels))

    def forward(self, x, timestep, labels):
        condition = self.conditioning(timestep, labels)
        shift, scale, gate, ff_shift, ff_scale, ff_gate = self.norm1.linear(condition)[:, None].chunk(6, -1)
        y = nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
        q, k, v = (layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for layer in (self.attn1.to_q, self.attn1.to_k, self.attn1.to_v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + gate * self.attn1.to_out[0](mixed)
        y = nn.functional.layer_norm(x, x.shape[-1:], eps=self.epsilon) * (1 + ff_scale) + ff_shift
        y = nn.functional.gelu(self.ff.net[0].proj(y), approximate="tanh")
        return x + ff_gate * self.ff.net[2](y)


class Transformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        heads, width = config["num_attention_heads"], None
        width = heads * config["attention_head_dim"]
        self.patch = config["patch_size"]
        side = config["sample_size"] // self.patch
        self.pos_embed = part(proj=nn.Conv2d(1, width, self.patch, self.patch))
        self.register_buffer("position", torch.from_numpy(
            dit.position_embedding(width, side).astype(np.float32)), persistent=False)
        self.transformer_blocks = nn.ModuleList(
            Block(width, heads, config["num_embeds_ada_norm"], config["norm_eps"])
            for _ in range(config["num_layers"]))
        self.proj_out_1 = nn.Linear(width, 2 * width)
        self.proj_out_2 = nn.Linear(width, self.patch ** 2)

    def forward(self, hidden_states, timestep=None, class_labels=None):
        x = self.pos_embed.proj(hidden_states)
        side = x.shape[-1]
        x = x.flatten(2).transpose(1, 2) + self.position
        for block in self.transformer_blocks:
            x = block(x, timestep, class_labels)
        condition = self.transformer_blocks[0].conditioning(timestep, class_labels)
        shift, scale = self.proj_out_1(condition)[:, None].chunk(2, -1)
        x = self.proj_out_2(nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)
        x = x.unflatten(1, (side, side)).unflatten(-1, (self.patch, self.patch))
        return x.permute(0, 1, 3, 2, 4).reshape(hidden_states.shape)


class Scheduler:
    """DDIM, x0 clamped to [-1, 1]."""

    def __init__(self, folder, steps=dit.STEPS):
        schedule = json.loads((folder / "scheduler_config.json").read_text())
        self.total, self.steps = schedule["num_train_timesteps"], steps
        self.kept = np.cumprod(1 - np.linspace(schedule["beta_start"], schedule["beta_end"], self.total))
        self.timesteps = torch.from_numpy(dit.timesteps_of(steps)[::-1].copy())
        self.step_index = None

    def step(self, eps, timestep, x):
        now = float(self.kept[timestep])
        before = timestep - self.total // self.steps
        then = float(self.kept[before]) if before >= 0 else 1.0
        x0 = ((x - math.sqrt(1 - now) * eps) / math.sqrt(now)).clamp(-1, 1)
        eps = (x - math.sqrt(now) * x0) / math.sqrt(1 - now)
        return math.sqrt(then) * x0 + math.sqrt(1 - then) * eps


class Pipeline:
    """What a diffusers pipeline is to its user: a transformer, a scheduler, a call."""

    def __init__(self, folder=dit.DIGITS):
        self.transformer = Transformer(json.loads((folder / "transformer/config.json").read_text()))
        self.scheduler = Scheduler(folder / "scheduler")
        tensors = dit.load(folder / "transformer/diffusion_pytorch_model.safetensors")
        self.transformer.load_state_dict({name: torch.from_numpy(np.array(value, np.float32))
                                          for name, value in tensors.items()})
        self.transformer.eval()

    @torch.no_grad()
    def __call__(self, noise, classes):
        x, labels = torch.from_numpy(noise), torch.from_numpy(np.asarray(classes)).long()
        for index, timestep in enumerate(self.scheduler.timesteps):
            self.scheduler.step_index = index
            eps = self.transformer(x, timestep=timestep.expand(len(x)), class_labels=labels)
            x = self.scheduler.step(eps, int(timestep), x)
        return x.numpy()
