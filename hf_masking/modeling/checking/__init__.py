"""Checks of a patched model: does it compute what its masks define?"""
