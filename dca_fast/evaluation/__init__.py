"""Rate and distortion from real files, beside other codecs."""
