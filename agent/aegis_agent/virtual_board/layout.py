# SPDX-License-Identifier: GPL-2.0-or-later
"""Which addresses of a chip an image needs mapped, and as what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aegis_agent.virtual_board.image import Segment
from aegis_agent.virtual_board.silicon import FLASH_PAGE_BYTES, PAGE_BYTES, Silicon, Span


def flash_pages(silicon: Silicon, loaded: Sequence[Segment]) -> Iterator[Span]:
    """Yield the flash pages in which `loaded` lie, neighbours joined."""
    pages: set[int] = set()
    for segment in loaded:
        if any(window.holds(segment.load_address) for window in silicon.flash_windows):
            first = segment.span.start // FLASH_PAGE_BYTES
            pages.update(range(first, (segment.span.end - 1) // FLASH_PAGE_BYTES + 1))
    start: int | None = None
    for page in sorted(pages):
        if start is None:
            start = page
        if page + 1 not in pages:
            yield Span(start * FLASH_PAGE_BYTES, (page + 1) * FLASH_PAGE_BYTES)
            start = None


def without(span: Span, pages: Sequence[int]) -> Iterator[Span]:
    """Yield what is left of `span` without `pages`, which are sorted."""
    start = span.start
    for page in pages:
        if span.holds(page):
            if start < page:
                yield Span(start, page)
            start = page + PAGE_BYTES
    if start < span.end:
        yield Span(start, span.end)
