"""The passes of SDS over the decoder blocks."""
