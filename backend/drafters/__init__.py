"""Drafters: Amphista, Medusa, Hydra, EAGLE. `generate` and `Amphista.load` (`checkpoint`) use one;
`registry` holds the contract of an architecture, `layers/` their parts, `config` all settings."""
