"""What GPT-1 compares its Transformer with, section 5: an LSTM that learns the same.

Alec Radford, Karthik Narasimhan, Tim Salimans, Ilya Sutskever, Improving Language Understanding by
Generative Pre-Training, 2018.

    B rows      T tokens to read      V vocabulary      n units
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxhist.models.seq2seq import LSTM, uniform

Array = jax.Array


class LanguageLSTM(nn.Module):
    """Layers of long short-term memory, which predict the token that comes next.

    Tokens are predicted by their embeddings, as in `GPT`. The paper's has one layer of 2,048 units.
    """

    vocabulary: int
    layers: int = 1
    n: int = 2048
    dropout: float = 0.0  # of embeddings and of what each layer makes of them

    def __call__(self, tokens: Array, *, train: bool) -> Array:
        """[B, T] -> the logits of the tokens behind each, [B, T, V]."""
        return self.read(tokens, train=train)[1]

    @nn.compact
    def read(self, tokens: Array, *, train: bool) -> tuple[Array, Array]:
        """[B, T] -> what the last layer makes of each, [B, T, n], and the logits."""
        embedding = nn.Embed(self.vocabulary, self.n, embedding_init=uniform, name="embedding")
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x, begins = drop(embedding(tokens)), jnp.zeros(tokens.shape, bool)
        for i in range(self.layers):
            x = drop(LSTM(self.n, name=f"lstm_{i}")(x, begins)[1])
        return x, embedding.attend(x)
