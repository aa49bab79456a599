//! The whole-system suite stands in `suite/`; the programs it runs and kills stand in `src/bin/`.
