"""The server: OpenAI-compatible answers, and sessions that never end, over HTTP (docs/protocol.md).

Pure, without input or output: refusal, wire, chunks, prompt, bodies, tally, access.  Durable: journal, folder.
Alive: hosted and house (sessions with their journals), app and run (HTTP).
"""
