//! The classifier: its shapes ([`ModelConfig`]), its parameters in one flat arena ([`ParamTable`]), how they start
//! ([`init`](mod@init)) and how a training step is composed of operations ([`classifier`]).

pub mod classifier;
mod config;
pub mod init;
mod params;

pub use config::{Cell, ModelConfig};
pub use params::{Init, ParamSpec, ParamTable, Views, ViewsMut};

use crate::error::Result;

/// A checked configuration and the parameter table it gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Shapes.
    pub config: ModelConfig,
    /// Where each parameter lies in the arena.
    pub table: ParamTable,
}

impl Model {
    /// Checks `config` and lays out its parameters.
    pub fn new(config: ModelConfig) -> Result<Self> {
        config.check()?;
        let table = ParamTable::new(&config)?;
        Ok(Self { config, table })
    }

    /// Keras' initial values, from `seed`.
    pub fn init(&self, seed: u64) -> Vec<f32> {
        init::init(&self.table, seed)
    }
}
