"""One stage after another: state, step, optimiser, checkpoints, the loop."""
