"""The pair that people hold: load, join, resize, quantize, save."""
