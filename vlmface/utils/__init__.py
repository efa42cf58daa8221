"""Helpers without knowledge of faces: files, images, settings, processes, pages."""
