"""Pictures as files: naming and saving them, reading what they say about themselves, opening what people bring.

No torch, no gradio. The database of pictures is the business of `webui.jobs`.
"""

from webui.core.pictures import open_picture
from webui.gallery.files import ImageFiles
from webui.gallery.pictures import png_bytes, read_infotext

__all__ = ["ImageFiles", "open_picture", "png_bytes", "read_infotext"]
