"""The Realtime WebSocket: OpenAI's events over one endless session (docs/protocol.md).

Pure, without input or output: config, items, script, shape, response, protocol.  With it: line (one connection).
"""
