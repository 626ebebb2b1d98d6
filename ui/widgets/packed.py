"""Arrays for a page's scripts as one binary, which `assets/scripts/weights/histograms.js` reads.

    4 bytes   length of the header, little-endian
    header    JSON, padded with spaces to a multiple of 8 together with the length
    arrays    little-endian, each at a multiple of 8; `arrays` of the header has for each name its
              type, where it begins after the header, and its shape

A browser that has it asks with its ETag, a hash of all of that, and is told when it is the same."""

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
    """A binary with its ETag, plain and compressed; what does not get smaller is not compressed."""

    plain: bytes
    packed: bytes
    etag: str

    @classmethod
    def of(
        cls, header: dict[str, Any], arrays: Mapping[str, np.ndarray], compress: bool = True
    ) -> "PackedArrays":
        places, offset = {}, 0
        for name, array in arrays.items():
            places[name] = [array.dtype.str[1:], offset, array.shape]
            offset += -(-array.nbytes // 8) * 8
        text = json.dumps(header | {"arrays": places}, allow_nan=False).encode()
        text += b" " * (-(len(text) + 4) % 8)
        parts = [len(text).to_bytes(4, "little"), text]
        for array in arrays.values():
            parts += [array.tobytes(), bytes(-array.nbytes % 8)]
        plain = b"".join(parts)
        tag = sha256(plain).hexdigest()[:32]
        return cls(plain, gzip.compress(plain, 5, mtime=0) if compress else b"", f'"{tag}"')

    def answer(self, request: Request) -> Response:
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
