"""Drafters: Amphista, Medusa, Hydra and EAGLE. To use one, see `generate` and `Amphista.load` in
`checkpoint`. `registry` has the interface of an architecture, `adapted` and `adaptation` shared
parts, and `config` all settings."""
