"""Bytes outside of the codec: the container, image files, metadata, writes that are whole or nothing."""
