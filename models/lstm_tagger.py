"""A bidirectional LSTM tagger (Huang et al. 2015, arXiv:1508.01991, without the CRF layer).

The sequence is fixed: `torch.export` makes the length of an LSTM's input a constant.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import linear
from models.sample import BATCH, EXAMPLE_BATCH, Sample, seeded


class LstmTagger(nn.Module):
    """Sequence labelling: token_ids [batch, sequence] to logits [batch, sequence, num_tags]."""

    def __init__(
        self, vocabulary: int, embedding: int, hidden: int, layers: int, num_tags: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True, bidirectional=True)
        self.classifier = linear(2 * hidden, num_tags)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Returns the logits of every token."""
        states, _ = self.lstm(self.embedding(token_ids))
        logits: Tensor = self.classifier(states)
        return logits


def lstm_tagger(
    vocabulary: int = 20000,
    embedding: int = 128,
    hidden: int = 256,
    layers: int = 2,
    sequence: int = 64,
    num_tags: int = 17,
    seed: int = 0,
) -> Sample:
    """Builds the tagger.

    Args:
        vocabulary: Number of token ids.
        embedding: Size of a token's embedding.
        hidden: Size of the state per direction.
        layers: Number of bidirectional layers.
        sequence: Tokens per sentence.
        num_tags: Number of logits per token.
        seed: Of weights and example inputs.
    """
    with seeded(seed):
        module = LstmTagger(vocabulary, embedding, hidden, layers, num_tags).eval()
        token_ids = torch.randint(vocabulary, (EXAMPLE_BATCH, sequence))
        return Sample(module, (token_ids,), ({0: BATCH},), ("token_ids",), ("logits",))
