//! The training step, composed of operations.
