"""Binary format of arrays for a page's scripts, which `assets/scripts/weights/histograms.js` reads.

    4 bytes   length of the header, little-endian
    header    JSON, padded with spaces so that length and header fill a multiple of 8 bytes
    arrays    little-endian, each at a multiple of 8; the header's `arrays` has for each name its
              type, its offset from the end of the header, and its shape

The ETag is a hash of the data; a browser that has the same data gets an empty 304 response."""

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response


@dataclass(frozen=True)
class PackedArrays:
    """Binary data with its ETag.

    Attributes:
        plain: the data.
        packed: the data compressed with gzip; empty if compression does not pay.
        etag: quoted hash of the data.
    """

    plain: bytes
    packed: bytes
    etag: str

    @classmethod
    def of(
        cls, header: dict[str, Any], arrays: Mapping[str, np.ndarray], compress: bool = True
    ) -> "PackedArrays":
        """Pack arrays with a header; without `compress` there is no compressed version."""
        index, offset = {}, 0
        for name, array in arrays.items():
            index[name] = [array.dtype.str[1:], offset, array.shape]
            offset += -(-array.nbytes // 8) * 8
        text = json.dumps(header | {"arrays": index}, allow_nan=False).encode()
        text += b" " * (-(len(text) + 4) % 8)
        parts = [len(text).to_bytes(4, "little"), text]
        for array in arrays.values():
            parts += [array.tobytes(), bytes(-array.nbytes % 8)]
        plain = b"".join(parts)
        tag = sha256(plain).hexdigest()[:32]
        return cls(plain, gzip.compress(plain, 5, mtime=0) if compress else b"", f'"{tag}"')

    def answer(self, request: Request) -> Response:
        """The response to a request: the data, or status 304 if the browser has it."""
        headers = {
            "ETag": self.etag,
            "Cache-Control": "private, no-cache",
            "Vary": "Accept-Encoding",
        }
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        content = self.plain
        if self.packed and "gzip" in request.headers.get("accept-encoding", ""):
            content, headers["Content-Encoding"] = self.packed, "gzip"
        return Response(content, media_type="application/octet-stream", headers=headers)
