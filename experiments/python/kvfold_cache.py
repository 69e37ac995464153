"""KV caches between kvfold and transformers.

    kvfold cache export cache.safetensors --rotated --out there.safetensors
        cache, tokens, position = kvfold_cache.load("there.safetensors")
        model(ids, past_key_values=cache, position_ids=position + torch.arange(n)[None])

        kvfold_cache.save(cache, tokens, "here.safetensors")
    kvfold cache import here.safetensors --model MODEL --out cache.safetensors

Keys are turned by RoPE in transformers' half-split pairs; kvfold turns them back and reorders them for models whose
files pair neighbours (Llama's GGUF).
"""

import json

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import DynamicCache


def load(path, dtype=torch.float32):
    """The file as a DynamicCache; its rows' token ids; the position of the next token."""
    cache = DynamicCache()
    with safe_open(path, "pt") as file:
        meta = file.metadata()
        if meta.get("keys_rotated") != "true":
            raise ValueError(f"{path}: keys are not rotated; expected a file of 'kvfold cache export --rotated'")
        for i in range(int(meta["layers"])):
            k, v = (file.get_tensor(f"layers.{i}.{part}")[None].to(dtype) for part in "kv")
            cache.update(k, v, i)
    return cache, json.loads(meta["tokens"]), int(meta["next_position"])


def save(cache, tokens, path, positions=None):
    """Writes batch element 0 of a DynamicCache. `positions`, one a row: 0, 1, 2, ... by default."""
    tensors = {}
    for i, layer in enumerate(cache.layers):
        for part, tensor in (("k", layer.keys), ("v", layer.values)):
            if tensor.shape[2] != len(tokens):
                raise ValueError(f"layer {i} has {tensor.shape[2]} rows; expected {len(tokens)}, one a token")
            tensors[f"layers.{i}.{part}"] = tensor[0].detach().cpu().contiguous()
    positions = list(range(len(tokens))) if positions is None else list(positions)
    meta = {"keys_rotated": "true", "rope_pairing": "half-split"}
    meta |= {"tokens": json.dumps(list(tokens)), "positions": json.dumps(positions)}
    save_file(tensors, path, metadata=meta)
