"""What training will take, worked out on the meta device: tensors have shapes and types there, and no memory.

`trilemma.evaluation.plan.step.measure_step` runs a training step of any family that way and counts; the other files turn the
counts into bytes and seconds on a GPU that is named, by formulas that each of them states.
"""
