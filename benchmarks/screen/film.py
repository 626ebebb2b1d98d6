"""A film of a sweep on the Workbench: all layers from 0 to 76 % zeros, each frame measured.

    make bench-screen.film
    make bench-screen.film ARGS="--model toy --out /tmp/film.png"

An animated PNG of 20 frames: gauges, histogram, front and texts. The data folder should have a
profile of the model."""

from __future__ import annotations

import argparse
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Page

from backend.settings import settings
from benchmarks.screen.screenshots import IMAGES
from benchmarks.screen.server import chromium, dashboard

SIZE = {"width": 1200, "height": 800}
FRAMES, STEP, SHOWN_MS, LAST_MS = 20, 4, 400, 2000
LOADS_MS = 600_000  # of the model, on a busy machine
MEASURED = """() => document.querySelector('[data-gauge=ratio] i').textContent === 'measured'
  && document.querySelector('[data-gauge=speed] i').textContent === 'measured'"""
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompt", default="The capital of France is")
    parser.add_argument("--out", type=Path, default=IMAGES / "workbench-sweep.png")
    asked = parser.parse_args()
    with dashboard(settings().root) as shown, chromium() as browser:
        page = browser.new_page(viewport=SIZE, reduced_motion="reduce")
        page.set_default_timeout(LOADS_MS)
        page.goto(f"{shown.url}/workbench?model={asked.model}&prompt={asked.prompt}")
        page.wait_for_function("document.querySelector('#workbench-histogram h2')?.textContent")
        page.locator("[data-knob=pruner]").select_option("magnitude")
        film = animated([*frames(page)])
    asked.out.write_bytes(film)
    print(f"{asked.out}: {FRAMES} frames, {len(film) / 1e3:.0f} kB")


def frames(page: Page) -> Iterator[bytes]:
    """PNGs of one size."""
    page.get_by_role("button", name="Write").click()
    for number in range(FRAMES):
        page.locator("#workbench-sparsity").fill(str(STEP * number))
        page.wait_for_timeout(SHOWN_MS)  # until it is asked
        page.wait_for_function(MEASURED)
        top = page.locator(".workbench-gauges").bounding_box()
        assert top is not None
        clip = {"x": 0, "y": top["y"] - 8, "width": SIZE["width"], "height": SIZE["height"]}
        yield page.screenshot(clip=clip | {"height": SIZE["height"] - top["y"]})


def animated(stills: list[bytes]) -> bytes:
    """PNGs as one that moves (APNG, PNG specification, third edition, 11.3.6)."""
    header = chunks(stills[0])[0][1]
    width, height = struct.unpack(">II", header[:8])
    parts = [(b"IHDR", header), (b"acTL", struct.pack(">II", len(stills), 0))]
    number = 0
    for place, still in enumerate(stills):
        shown = LAST_MS if place == len(stills) - 1 else SHOWN_MS
        control = struct.pack(">IIIIIHHBB", number, width, height, 0, 0, shown, 1000, 0, 0)
        parts.append((b"fcTL", control))
        number += 1
        for kind, data in chunks(still):
            if kind == b"IDAT":
                own = place == 0
                parts.append((kind, data) if own else (b"fdAT", struct.pack(">I", number) + data))
                number += not own
    return SIGNATURE + b"".join(chunk(*each) for each in [*parts, (b"IEND", b"")])


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and content of each chunk."""
    found, at = [], len(SIGNATURE)
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        found.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


if __name__ == "__main__":
    main()
