"""Where a packet would go: a pure walk through a snapshot. No sockets, no root, no clock."""

from netpath.predict.walker import predict, predict_reply

__all__ = ["predict", "predict_reply"]
