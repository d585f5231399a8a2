//! The CUDA back end.

pub mod image;
