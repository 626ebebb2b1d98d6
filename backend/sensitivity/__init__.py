"""Sensitivity of layers to storage formats, and the best mix of formats for a budget.

measured               Fisher information of layer outputs; loss with one layer changed
walk                   pass over the blocks that makes the weights of a layer in each format
profile                formats, figures of all layers, decoding times
allocation, budget     selection of a format for each layer under a budget
"""
