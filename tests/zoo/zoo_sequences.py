"""Networks of sequences written by hand in plain torch: recurrent, attentive, routed and looped."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from zoo_case import WORDS


class Recurrent(nn.Module):
    """An LSTM, time first, and a head for every step."""

    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.embed, self.core = nn.Embedding(WORDS, 12), kind(12, 16, num_layers=2)
        self.hidden, self.head = nn.Linear(16, 12), nn.Linear(12, 5)

    def forward(self, input_ids):
        h, _ = self.core(self.embed(input_ids).transpose(0, 1))
        return self.head(torch.tanh(self.hidden(h))).transpose(0, 1)


class Packed(nn.Module):
    """A GRU of packed sequences whose last state is classified."""

    def __init__(self):
        super().__init__()
        self.embed, self.core = nn.Embedding(WORDS, 12), nn.GRU(12, 16, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 3))

    def forward(self, input_ids, attention_mask):
        lengths = attention_mask.sum(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embed(input_ids), lengths, batch_first=True, enforce_sorted=False
        )
        return self.head(self.core(packed)[1].transpose(0, 1).flatten(1))


class AttentiveSequences(nn.Module):
    """An encoder and a decoder of LSTM cells, step by step, with attention: layers that are called at every step."""

    def __init__(self):
        super().__init__()
        self.embed, self.encoder = nn.Embedding(WORDS, 12), nn.LSTM(12, 16, batch_first=True)
        self.cell, self.query, self.out = nn.LSTMCell(12, 16), nn.Linear(16, 16), nn.Linear(32, WORDS)

    def forward(self, source, target):
        memory, (h, c) = self.encoder(self.embed(source))
        h, c, outputs = h[0], c[0], []
        for token in self.embed(target).unbind(1):
            h, c = self.cell(token, (h, c))
            weights = torch.softmax(torch.einsum("btd,bd->bt", memory, self.query(h)), 1)
            outputs.append(self.out(torch.cat([h, torch.einsum("bt,btd->bd", weights, memory)], 1)))
        return torch.stack(outputs, 1)


class Encoders(nn.Module):
    """torch's own transformer layers with a mask of padding."""

    def __init__(self, *, batch_first=True):
        super().__init__()
        self.first = batch_first
        layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=batch_first)
        self.embed = nn.Embedding(WORDS, 16)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first)
        self.head = nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask):
        h = self.embed(input_ids)
        h = self.encoder(h if self.first else h.transpose(0, 1), src_key_padding_mask=attention_mask == 0)
        return self.head(h[:, 0] if self.first else h[0])


class SelfAttention(nn.Module):
    """nn.MultiheadAttention in a block of one's own."""

    def __init__(self):
        super().__init__()
        self.embed, self.attention = nn.Embedding(WORDS, 16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, input_ids, attention_mask):
        h = self.embed(input_ids)
        h = h + self.attention(h, h, h, key_padding_mask=attention_mask == 0, need_weights=False)[0]
        return h + self.down(functional.gelu(self.up(self.norm(h))))


class Queries(nn.Module):
    """Several queries share one key and one value, rotated; a decoder as it is written by hand."""

    def __init__(self, heads=4, shared=1):
        super().__init__()
        self.heads, self.shared = heads, shared
        self.embed, self.norm = nn.Embedding(WORDS, 16), nn.LayerNorm(16)
        self.q, self.kv = nn.Linear(16, 16, bias=False), nn.Linear(16, 2 * shared * 4, bias=False)
        self.o, self.gate_up, self.down = nn.Linear(16, 16), nn.Linear(16, 48), nn.Linear(24, 16)
        self.head = nn.Linear(16, WORDS, bias=False)

    def forward(self, input_ids):
        h = self.embed(input_ids)
        x = self.norm(h)
        q = self.q(x).unflatten(-1, (self.heads, 4)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, self.shared, 4)).movedim(-3, 0).transpose(2, 3)
        k, v = (one.repeat_interleave(self.heads // self.shared, 1) for one in (k, v))
        h = h + self.o(functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.norm(h)).chunk(2, -1)
        return self.head(h + self.down(functional.silu(gate) * up))


class Experts(nn.Module):
    """Each token goes to the expert that a router chooses."""

    def __init__(self):
        super().__init__()
        self.embed, self.router, self.head = nn.Embedding(WORDS, 16), nn.Linear(16, 3), nn.Linear(16, 5)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)) for _ in range(3))

    def forward(self, input_ids):
        h = self.embed(input_ids)
        flat = h.flatten(0, 1)
        weight, chosen = self.router(flat).softmax(-1).max(-1)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            here = (chosen == number).nonzero()[:, 0]
            out = out.index_add(0, here, weight[here, None] * expert(flat[here]))
        return self.head(h + out.view_as(h))


class Looped(nn.Module):
    """One block again and again, as looped and universal transformers have it."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(WORDS, 12), nn.LayerNorm(12)
        self.up, self.down, self.head = nn.Linear(12, 24), nn.Linear(24, 12), nn.Linear(12, 4)

    def forward(self, input_ids):
        h = self.embed(input_ids)
        for _ in range(3):
            h = h + self.down(functional.gelu(self.up(self.norm(h))))
        return self.head(h)
