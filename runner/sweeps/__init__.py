"""Many jobs: grids, Optuna studies, launchers and packs."""
