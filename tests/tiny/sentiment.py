"""A tiny sentiment model: each token has a weight, and a text has their mean."""

import numpy as np
from onnx import TensorProto, helper

from tasks._text import load_tokenizer, train_tokenizer
from tasks.sentiment import Sentiment
from tests.tiny.graphs import build_graph

GLAD, SAD = (" good", " great", " lovely"), (" bad", " awful", " boring")
_SENTENCES = [f"the film is{word} and the story is{word} too, isn't it?" for word in (*GLAD, *SAD)]
_SCALE = 8.0

TASK = Sentiment(
    labels=("negative", "positive"),
    tokenizer=train_tokenizer(_SENTENCES * 5, size=400, min_count=2),
    buckets=(8, 16, 32),
    example_texts=("The film is great, and the story is good too.", "An awful film, and a boring story."),
    short_text_temperatures=(),
    word_pieces=(0.33, 0.31, 0.36),
)
"""Does a text have more positive words than negative ones?"""


def weights() -> np.ndarray:
    """Return each token's contribution to each class's score, float32 (tokens, 2), centred over the classes."""
    tokenizer = load_tokenizer(TASK.tokenizer)
    table = np.zeros((tokenizer.get_vocab_size(), 2), np.float32)
    for words, sign in ((GLAD, 1), (SAD, -1)):
        for word in words:
            (token,) = tokenizer.encode(word.strip()).ids  # The tokenizer adds a space before the first word.
            table[token] = (-sign, sign)
    return table * _SCALE


def graph() -> bytes:
    """Build a graph: evidence is a token's weight over the number of tokens; its sum, soft-maxed, the probabilities."""
    constants = {
        "weights": weights(),
        "padding": np.array(0, np.int64),
        "axis": np.array([1], np.int64),
        "last": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("Equal", ["tokens", "padding"], ["is_padding"]),
        helper.make_node("Not", ["is_padding"], ["is_text"]),
        helper.make_node("Cast", ["is_text"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["mask", "axis"], ["length"], keepdims=1),
        helper.make_node("Div", ["mask", "length"], ["fraction"]),
        helper.make_node("Unsqueeze", ["fraction", "last"], ["fractions"]),
        helper.make_node("Gather", ["weights", "tokens"], ["token_weights"], axis=0),
        helper.make_node("Mul", ["token_weights", "fractions"], ["evidence"]),
        helper.make_node("ReduceSum", ["evidence", "axis"], ["scores"], keepdims=0),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
    ]
    return build_graph(TASK, nodes, constants)
