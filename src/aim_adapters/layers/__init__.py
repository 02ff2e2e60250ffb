"""The trainable layers that AIM adds to an image transformer."""
