"""The nouns of netpath: frozen dataclasses that every stage of the pipeline shares.

This package imports nothing but the standard library, opens nothing and prints nothing.
"""
