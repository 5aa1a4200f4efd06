"""Faces made anew: found (MTCNN), brought into one position, restored (GFPGAN, CodeFormer) and pasted back."""

from webui.engine.faces.detector import FaceDetector, load_face_detector
from webui.engine.faces.network import FaceNetwork, load_face_network
from webui.engine.faces.restoration import FaceRestorer, restore_faces

__all__ = ["FaceDetector", "FaceNetwork", "FaceRestorer", "load_face_detector", "load_face_network", "restore_faces"]
