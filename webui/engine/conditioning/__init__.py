"""Words into tensors: chunks of 75 tokens, emphasis, and a small cache."""

from webui.engine.conditioning.cache import PromptCache
from webui.engine.conditioning.encode import encode_prompts

__all__ = ["PromptCache", "encode_prompts"]
