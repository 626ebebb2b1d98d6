"""Sensitivity: what each layer loses in each format, and the best mix of formats for a budget.

formats       the candidates, and the bytes of a layer in each
allocation    a format for each layer under a budget
"""
