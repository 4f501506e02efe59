"""Networks written by hand in plain torch, with what trips tools up."""

from __future__ import annotations

import zoo_images as images
import zoo_numbers as of_numbers
import zoo_sequences as sequences
from zoo_case import Architecture, numbers, padded, words


def masked(build, family="encoder"):
    ids, mask = padded()
    return Architecture(family, build, {"input_ids": ids, "attention_mask": mask}, "attention_mask")


def pictures(family, build, size=16, channels=3):
    return Architecture(family, build, numbers(4, channels, size, size))


TOKENS = {"input_ids": words(4, 6)}
PLAIN = {
    "perceptron": Architecture("dense", of_numbers.perceptron, numbers(9, 10)),
    "VGG": pictures("vision", images.vgg),
    "DenseNet": pictures("vision", images.Dense, channels=4),
    "Inception": pictures("vision", images.Inception, channels=4),
    "ShuffleNet with SE": pictures("vision", images.Shuffled),
    "MLP-Mixer": pictures("vision", images.Mixer, size=12),
    "flattened channels last": pictures("vision", images.ChannelsLast),
    "Siamese": Architecture("vision", images.Siamese, {"one": numbers(4, 1, 8, 8), "two": numbers(4, 1, 8, 8, seed=2)}),
    "U-Net": pictures("U-Net", images.UNet),
    "U-Net in time, modulated": Architecture("U-Net", images.UNetOfTime, {"x": numbers(4, 2, 16), "t": numbers(4)}),
    "autoencoder": pictures("U-Net", images.Autoencoder, size=8, channels=1),
    "RetinaNet": pictures("detector", images.Detector),
    "SSD": pictures("detector", images.SingleShot),
    "WaveNet": Architecture("sound", images.Temporal, numbers(4, 2, 15)),
    "LSTM, time first": Architecture("recurrent", sequences.Recurrent, TOKENS),
    "GRU, packed": masked(sequences.Packed, "recurrent"),
    "LSTM cells with attention": Architecture(
        "recurrent", sequences.AttentiveSequences, {"source": words(4, 6), "target": words(4, 5, seed=2)}
    ),
    "nn.TransformerEncoder": masked(sequences.Encoders),
    "nn.TransformerEncoder, time first": masked(lambda: sequences.Encoders(batch_first=False)),
    "nn.MultiheadAttention": masked(sequences.SelfAttention),
    "multi-query decoder": Architecture("decoder", sequences.Queries, TOKENS),
    "grouped-query decoder": Architecture("decoder", lambda: sequences.Queries(shared=2), TOKENS),
    "routed experts": Architecture("experts", sequences.Experts, TOKENS),
    "weighed experts": Architecture("experts", of_numbers.DenseExperts, numbers(9, 10)),
    "PointNet": Architecture("points", of_numbers.Points, numbers(4, 7, 3)),
    "graph convolutions": Architecture("graph", of_numbers.Graph, numbers(4, 6, 5)),
    "DLRM": Architecture("tables", of_numbers.Recommender, {"numbers": numbers(6, 5), "categories": words(6, 3) % 10}),
    "normalising flow": Architecture("dense", of_numbers.Coupled, numbers(9, 6)),
    "adapters (LoRA)": Architecture("dense", of_numbers.Adapted, numbers(9, 10)),
    "looped block": Architecture("decoder", sequences.Looped, TOKENS),
    "early exits": Architecture("dense", of_numbers.EarlyExits, numbers(9, 10)),
}
