"""Bytes to meaning and back, pure: what the guest's frames say, and the frames it is sent.

Everything a guest wrote is read here and nowhere else, by functions that raise only
`Malformed`. What comes out are values (`packets`) or, on the frame path, plain tuples.
The room keeps no state between two frames and judges nothing but form.
"""
