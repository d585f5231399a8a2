//! The software driver is for Linux: elsewhere nothing opens, and nothing can be asked of it.

use std::path::PathBuf;

use super::{FaultReport, Scope};
use crate::counters::Counters;

const WHY: &str = "the software CUDA driver is for Linux; softcuda's Device runs kernels everywhere";

/// Says that there is no shared object here.
pub fn library() -> Result<PathBuf, String> {
    Err(WHY.into())
}

/// Says that there is no shared object here.
pub fn open() -> Result<&'static Soft, String> {
    Err(WHY.into())
}

/// The open shared object: there is none.
#[derive(Debug)]
pub enum Soft {}

#[allow(missing_docs)]
impl Soft {
    pub fn reset(&self) {
        match *self {}
    }

    pub fn set(&self, _option: &str, _value: u64) -> Result<(), String> {
        match *self {}
    }

    pub fn get(&self, _option: &str) -> Option<u64> {
        match *self {}
    }

    pub fn arguments_end_at<T>(&self, _end: &'static T) -> Result<(), String> {
        match *self {}
    }

    pub fn counters(&self, _scope: Scope) -> Counters {
        match *self {}
    }

    pub fn clear_counters(&self, _scope: Scope) {
        match *self {}
    }

    pub fn last_fault(&self, _scope: Scope) -> Option<FaultReport> {
        match *self {}
    }
}
