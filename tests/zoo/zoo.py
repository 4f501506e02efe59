"""All architectures of the table, by name."""

from __future__ import annotations

from zoo_media import MEDIA
from zoo_plain import PLAIN
from zoo_text import TEXT

ARCHITECTURES = {**TEXT, **MEDIA, **PLAIN}
IN_EVERY_TEST_RUN = (
    "Llama (GQA)", "T5", "ALBERT", "Switch", "Whisper", "DETR", "EfficientNet", "U-Net", "RetinaNet",
    "LSTM, time first", "nn.TransformerEncoder", "flattened channels last",
)  # fmt: skip
"""A tenth of them, one of each kind; `make soak` goes through all."""
