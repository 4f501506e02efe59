"""Networks with blocks in plain torch, their weights in shards, and stores compared file by file."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

WORDS, WIDTH, TOKENS = 30, 8, 6


class Block(nn.Module):
    """Attention over the positions that a mask lets through, and a gated layer, on a stream."""

    def __init__(self):
        super().__init__()
        self.norm, self.q, self.k, self.v = nn.LayerNorm(WIDTH), *(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.o, self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x, bias):
        y = self.norm(x)
        weights = (self.q(y) @ self.k(y).transpose(1, 2) + bias).softmax(-1)
        x = x + self.o(weights @ self.v(y))
        return x + self.down(torch.relu(self.up(x)))


class Tower(nn.Module):
    """Words and places before the blocks, a norm and a tied head after them; a table that is not saved."""

    def __init__(self, blocks=4):
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.register_buffer("distances", torch.arange(TOKENS, dtype=torch.float32).neg(), persistent=False)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, words, mask):
        x = self.words(words) + self.places(torch.arange(words.shape[1]))
        bias = self.distances + (1 - mask)[:, None, :] * -1e4
        for block in self.blocks:
            x = block(x, bias.to(x.dtype))
        return self.head(self.norm(x))


def made(build, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().eval()


def batches(count=5, samples=4):
    generator = torch.Generator().manual_seed(1)
    found = []
    for number in range(count):
        words = torch.randint(0, WORDS, (samples, TOKENS), generator=generator)
        mask = (torch.arange(TOKENS) < torch.tensor([TOKENS, 3 + number % 3, TOKENS, 2])[:samples, None]).float()
        found.append({"words": words, "mask": mask})
    return found


def in_shards(model, folder, files=3):
    """Write the weights of a network as several files and their index; tied tensors under their first name."""
    folder.mkdir(parents=True, exist_ok=True)
    state, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            state[name] = tensor
            seen.add(tensor.data_ptr())
    names, index = list(state), {}
    for number in range(files):
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        part = {name: state[name].contiguous() for name in names[number::files]}
        save_file(part, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def files_of(root):
    root = Path(root)
    files = (path for path in root.rglob("*") if path.is_file() and path.name != "writer.lock")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def same_files(one, other):
    one, other = files_of(one), files_of(other)
    return [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]
