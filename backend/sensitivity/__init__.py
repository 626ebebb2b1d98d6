"""Sensitivity: what each layer loses in each format, and the best mix of formats for a budget.

formats, candidates    how a layer may be stored, and its weights then
measured               Fisher information of outputs; loss with one layer changed
walk, profile          the figures of all layers, block by block; the time of a token
allocation, budget     a format for each layer under a budget
search                 mixes of the same cost, tried
"""
