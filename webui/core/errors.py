"""The errors that Atelier raises on purpose.

Every message is one sentence or two for the person at the page: what failed, the value, and what to do about it. One
mapper an edge turns them into a toast, an exit code or an HTTP status; nothing else inspects them.
"""

from __future__ import annotations


class AtelierError(Exception):
    """The base of every error whose message is meant to be shown."""


class UserError(AtelierError):
    """Something asked for cannot be done as asked; asking differently helps."""


class InvalidRequest(UserError):
    """A field of a request is out of range, of the wrong kind, or names something unknown."""


class CheckpointNotFound(UserError):
    """No checkpoint of that name lies in the models folder."""


class UnsupportedModel(UserError):
    """A model file is damaged, or of a family that Atelier does not know."""


class Overflow(UserError):
    """A network made numbers that are not finite, as some do in half precision."""


class UnreadableImage(UserError):
    """A file is not a picture that can be decoded, or is too large to be."""


class UpscalerNotFound(UserError):
    """No upscaler of that name is built in or lies in the models folder."""


class ModelNotFound(UserError):
    """No model that does what was asked, such as restoring faces or making masks, lies in the models folder."""


class LoraNotFound(UserError):
    """No LoRA of that name lies in the models folder, or several could be meant."""


class VaeNotFound(UserError):
    """No VAE of that name lies in the models folder."""


class NotAllowed(UserError):
    """The caller may not do this, such as installing an extension from another machine."""


class ResourceError(AtelierError):
    """The machine ran out of something: memory, disk, a free port."""


class OutOfMemory(ResourceError):
    """The picture needs more memory than there is."""


class DiskFull(ResourceError):
    """A file could not be written, for want of space or of permission."""


class ExtensionError(AtelierError):
    """An extension failed; the message names it."""
