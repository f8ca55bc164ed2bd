"""Numbers as all studies read them, by quantile bins and with dropout on x: their published figures are of that."""

from multigate.nn.embed import Embedding
from multigate.schema import Number, Schema

EMBEDDING = Embedding(drop_numbers=True)


def binned(schema: Schema) -> Schema:
    """The schema with every number embedded by its bin."""
    features = (one.with_(embedding="bins") if isinstance(one, Number) else one for one in schema.features)
    return schema.with_(features=tuple(features))
