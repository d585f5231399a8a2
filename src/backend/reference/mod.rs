//! The oracle: each operation as plain loops over the equations, generic over f32 and f64.
use super::Real;
/// The oracle back end in precision `T`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference<T>(std::marker::PhantomData<T>);
impl<T: Real> Reference<T> {
    /// The oracle.
    pub fn new() -> Self {
        Self(std::marker::PhantomData)
    }
}
