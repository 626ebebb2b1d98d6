"""Layers that drafter architectures are built from: `adapted` is the trunk they share, `adaptation`
its cloned layers, `native` both on a CPU in 8 bits."""
