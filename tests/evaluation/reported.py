"""What tests read out of a page."""

from __future__ import annotations

import json
import re
from typing import Any

WICKED = "</script><script>document.title='broken'</script><b>bold</b> & \"quoted\" <!--"
"""A prompt that tries to be more than text."""


def data_of(page: str) -> dict[str, Any]:
    """The page's data."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def nowhere_else(page: str) -> list[str]:
    """Addresses that a browser would ask for; names of XML are none."""
    return [one for one in re.findall(r"(?:https?:)?//[\w.-]+\.?[\w/]+", page) if "www.w3.org/2000/svg" not in one and
            re.search(rf"(?:src|href|url\(|import|fetch\(|@import)[=('\" ]*{re.escape(one)}", page)]  # fmt: skip
