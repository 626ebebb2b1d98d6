"""Sensitivity: what each layer loses in each format, and the best mix of formats for a budget.

measured               Fisher information of outputs; loss with one layer changed
walk, profile          a layer's weights in each format, block by block; formats, the figures of all
                       layers, the time of a token
allocation, budget     a format for each layer under a budget
"""
