//! `recurve export`.

use super::ModelArgs;
use clap::Args;
use recurve::Result;
use recurve::checkpoint::{Weights, WeightsFormat};
use std::path::PathBuf;

/// Arguments of `recurve export`.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// File to write: Keras-layout weights as .npz or .safetensors
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
}

pub fn run(args: &ExportArgs) -> Result<()> {
    // A wrong extension is found before the model is read.
    WeightsFormat::of(&args.to, "--to")?;
    let (path, checkpoint) = args.model.load()?;
    let weights = Weights { model: checkpoint.model, params: checkpoint.state.params };
    weights.save(&args.to)?;
    super::say(format!(
        "{}: {} parameters of {} in {} arrays",
        args.to.display(),
        weights.params.len(),
        path.display(),
        weights.model.table.specs().len()
    ))
}
