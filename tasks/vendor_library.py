"""LiteLLM, imported late and with what it does on its own turned off."""

from __future__ import annotations

import logging
import warnings
from functools import cache
from types import ModuleType

from tasks.environment import apply_defaults


@cache
def litellm_module() -> ModuleType:
    """LiteLLM, imported late (4 to 8 s) and made quiet."""
    apply_defaults()
    import litellm

    litellm.suppress_debug_info = True
    litellm.drop_params = False  # what a vendor would refuse is dropped by us, and recorded
    # `max_retries=0` does not stop the OpenAI client from retrying embeddings twice: 0 is taken for "not given".
    litellm.DEFAULT_MAX_RETRIES = 0  # pyright: ignore[reportPrivateImportUsage] - it is read as litellm's attribute
    logging.getLogger("LiteLLM").setLevel(logging.ERROR)
    # The OpenAI client's models do not know the base64 vectors that it asks for by default.
    warnings.filterwarnings("ignore", message="Pydantic serializer warnings", category=UserWarning)
    return litellm
