"""Gives Schemathesis what it cannot know of this API: pictures that are large enough, and a mask that marks something.

SCHEMATHESIS_HOOKS=tests.serve.schemathesis_hooks schemathesis --config-file tests/serve/schemathesis.toml run URL
"""

import schemathesis
from hypothesis import strategies as st

from tests.serve.pictures import photo, png

PICTURES = st.just(png(photo()))
for media_type in ("image/png", "image/jpeg", "image/webp"):
    schemathesis.openapi.media_type(media_type, PICTURES)
