"""The sampling ledger: what one image costs under one (model, sampler, guidance, condition) setting.

`trilemma.evaluation.cost.ledger.measure_ledger` measures; `Ledger.to_dict()` belongs beside the metrics in a row of
results, whose protocol names the setting and the machine.
"""
