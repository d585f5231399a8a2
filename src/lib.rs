//! Recurrent text classifiers, trained, evaluated and served: Embedding → LSTM → Dense softmax.
//!
//! # Map
//! | module | what it holds |
//! | --- | --- |
//! | [`data`] | files in, padded ids out: NumPy archives, raw text, the embedded set, shuffling |
//! | [`model`] | shapes, the table of parameters over one flat arena, initialisers, the step composed of operations |
//! | [`backend`] | the two traits ([`backend::Ops`], [`backend::Engine`]) and what stands behind them |
//! | [`train`](mod@train) | the epoch loop; [`options`]: what a user chooses of it |
//! | [`checkpoint`] | model files; [`interchange`]: those of Keras, PyTorch and ONNX; [`archive`]: ZIP files, checked |
//! | [`tuning`] | launch constants of the CUDA kernels |
//! | [`metrics`] | loss, accuracy, confusion matrix, AUC |
//! | [`tensorboard`], `plot` | a training as event files, and as a picture (feature `plot`) |
//!
//! # Dimensions
//! `B` batch, `T` time, `E` embedding, `H` hidden, `V` vocabulary, `C` classes. Every array is row-major.
//!
//! # The life of one parameter, `lstm/recurrent_kernel`
//! 1. It is one row of [`model::ParamTable`]: name, shape `[H,4H]`, offset in the arena, initialiser.
//! 2. [`model::init`](mod@model::init) fills its slice of the arena from the seed.
//! 3. [`backend::Engine::load`] takes the arena.
//! 4. Forward reads it as the argument `u`; backward adds to the gradient arena at the same offset.
//! 5. Adam walks parameters, gradients and moments in one pass.
//! 6. [`checkpoint`] writes and reads it under its name; so do weight import and export.

pub mod archive;
pub mod backend;
pub mod checkpoint;
pub mod data;
pub mod error;
pub mod files;
pub mod interchange;
pub mod metrics;
pub mod model;
pub mod options;
#[cfg(feature = "plot")]
pub mod plot;
pub mod rng;
pub mod run;
pub mod tensorboard;
pub mod train;
pub mod tuning;

pub use error::{Error, Result};
