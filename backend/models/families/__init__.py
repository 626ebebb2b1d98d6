"""What differs between families of causal language models. Read in this order:

shapes      matrices of a model and where a checkpoint keeps them (no torch)
sizes       names of the sizes in a config (no torch)
stored      tensor names of a checkpoint -> matrices of the loaded model (no torch)
support     which methods can work on a model, and why not (no torch)
experts     the experts of a mixture as linears
logits      what a model does with its logits after the head
"""
