"""Gradients of a text's loss with respect to the cache rows before it, as PyTorch makes them, in f64.

    .venv-checkpoints/bin/python tests/oracle/make_gradients.py     tests/data/checkpoints/<name>/, beside the models

Run by hand in the environment of make_checkpoints.py, after it. Each folder gets rows.npy: random rows of a cache
[context, 2 * layers * KV heads * head_dim] as kvfold has them (of a layer its K, before RoPE, then its V), f32;
reading.json: the tokens behind them and the mean NLL of all but the first, nats; gradients.npy: its gradient, like the rows.
"""
import importlib
import json

import numpy as np
import torch
import transformers

from make_checkpoints import DATA, SMALL

CONTEXT = 7


def make(folder) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    config = model.config
    modeling = importlib.import_module(type(model).__module__)
    layers, heads, dim = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    rng = np.random.default_rng(sum(folder.name.encode()))
    values = rng.normal(0, 1, (CONTEXT, layers, 2, heads, dim)).astype("<f4")
    tokens = json.loads((folder / "tokens.json").read_text())[:9]

    rows = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    cos, sin = model.model.rotary_emb(torch.zeros(1, 1, dtype=torch.float64), torch.arange(CONTEXT)[None])
    cache = transformers.DynamicCache(config=config)
    for layer in range(layers):
        k = rows[:, layer, 0].transpose(0, 1)[None]
        v = rows[:, layer, 1].transpose(0, 1)[None]
        _, turned = modeling.apply_rotary_pos_emb(k, k, cos.double(), sin.double())
        cache.update(turned, v, layer)
    ids = torch.tensor([tokens])
    places = torch.arange(CONTEXT, CONTEXT + len(tokens))[None]
    logits = model(ids[:, :-1], past_key_values=cache, position_ids=places[:, :-1]).logits[0]
    loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
    loss.backward()
    np.save(folder / "rows.npy", values.reshape(CONTEXT, -1))
    np.save(folder / "gradients.npy", rows.grad.numpy().astype("<f4").reshape(CONTEXT, -1))
    (folder / "reading.json").write_text(json.dumps({"tokens": tokens, "loss": loss.item()}) + "\n")


def main() -> None:
    for name in SMALL:
        make(DATA / name)
        print(name)


if __name__ == "__main__":
    main()
