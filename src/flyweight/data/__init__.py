"""Messages with intents and entities: readers (one file a format), splits, spans <-> BIO tags."""

from flyweight.data.load import load_data, read_messages
from flyweight.data.messages import Entity, Message, NLUData
from flyweight.data.splits import split

__all__ = ["Entity", "Message", "NLUData", "load_data", "read_messages", "split"]
