"""Text of a stream to tokens and tokens of a reply to text, both exact for any way of cutting them up.

`text_in.py` encodes pieces (`text_pieces.py`) between exact cuts (`text_cuts.py`); `text_out.py` decodes and finds stop
strings.
"""

from penstock.models.text_in import CAP, TextEncoder
from penstock.models.text_out import StopResult, StopStrings, TextDecoder

__all__ = ["CAP", "StopResult", "StopStrings", "TextDecoder", "TextEncoder"]
