"""Words into tensors: a prompt's texts through the text encoders, and which of them guide which step."""

from webui.engine.conditioning.cache import PromptCache
from webui.engine.conditioning.encode import Embeddings
from webui.engine.conditioning.plan import PromptEncoder
from webui.engine.conditioning.words import Conditioning, PromptPlan

__all__ = ["Conditioning", "Embeddings", "PromptCache", "PromptEncoder", "PromptPlan"]
