//! The threaded CPU back end, in f32.
use crate::error::Result;
/// The CPU back end.
#[derive(Debug)]
pub struct Cpu {}
impl Cpu {
    /// With this many threads; 0 is one for each core.
    pub fn new(threads: usize) -> Result<Self> {
        let _ = threads;
        Ok(Self {})
    }
}
