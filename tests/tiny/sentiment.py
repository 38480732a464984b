"""A tiny model of texts, made with onnx alone: each token has a weight, and a text the mean of them."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tasks._text import load_tokenizer, train_tokenizer
from tasks.sentiment import Sentiment

GLAD, SAD = (" good", " great", " lovely"), (" bad", " awful", " boring")
_SENTENCES = [f"the film is{word} and the story is{word} too, isn't it?" for word in (*GLAD, *SAD)]
_SCALE = 8.0

TASK = Sentiment(
    labels=("negative", "positive"),
    tokenizer=train_tokenizer(_SENTENCES * 5, size=400, min_count=2),
    buckets=(8, 16, 32),
    example_texts=("The film is great, and the story is good too.", "An awful film, and a boring story."),
)
"""Are there more glad words in a text than sad ones?"""


def weights() -> np.ndarray:
    """How much each token adds to each class's score, float32 (tokens, 2), centred over the classes."""
    tokenizer = load_tokenizer(TASK.tokenizer)
    table = np.zeros((tokenizer.get_vocab_size(), 2), np.float32)
    for words, sign in ((GLAD, 1), (SAD, -1)):
        for word in words:
            (token,) = tokenizer.encode(word.strip()).ids  # It begins a text, which puts a blank before it.
            table[token] = (-sign, sign)
    return table * _SCALE


def graph() -> bytes:
    """Evidence is a token's weight divided by the number of tokens; the scores are its sum, soft-maxed."""
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
        helper.make_node("Div", ["mask", "length"], ["share"]),
        helper.make_node("Unsqueeze", ["share", "last"], ["shares"]),
        helper.make_node("Gather", ["weights", "tokens"], ["of_tokens"], axis=0),
        helper.make_node("Mul", ["of_tokens", "shares"], ["evidence"]),
        helper.make_node("ReduceSum", ["evidence", "axis"], ["scores"], keepdims=0),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
    ]
    made = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "tokens"])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2]),
            helper.make_tensor_value_info("evidence", TensorProto.FLOAT, ["batch", "tokens", 2]),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
