//! The engine of host back ends: a training step composed of their operations.

/// An engine over host operations.
pub struct HostEngine<O>(O);
impl<O> HostEngine<O> {
    /// An engine over `ops`.
    pub fn new(ops: O) -> Self {
        Self(ops)
    }
}
