"""Section of params.yaml: the base."""

from infini.choices import Precision
from infini.schema import Section


class Base(Section):
    """The pretrained model that gets the memory."""

    # a folder written by save_pretrained, or a hub name
    model: str
    # commit, branch or tag on the hub; null: main
    revision: str | None = None
    # of matrix products, in training and evaluation; bfloat16: only on processors that are fast
    # at it
    precision: Precision = "float32"
