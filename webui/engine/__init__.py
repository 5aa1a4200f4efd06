"""Requests into pictures: start reading at `generate`. All of it imports torch, but for `manager`, which does late."""
