"""The wandb workspace as code: `python -m trilemma.dashboard` builds it from `conf/dashboard.yaml`."""
