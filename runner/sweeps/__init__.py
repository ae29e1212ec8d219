"""Many jobs: grids, Optuna's studies, launchers and packs."""
