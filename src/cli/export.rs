//! `recurve export`.

use super::ModelArgs;
use clap::Args;
use recurve::Result;
use recurve::interchange::{About, Format, Weights, export};
use std::path::PathBuf;

/// Arguments of `recurve export`.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// File to write, its ending says what: .keras or .weights.h5 (Keras), .safetensors (PyTorch state dict), .onnx, .npz
    /// (arrays under Keras' names)
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
}

pub fn run(args: &ExportArgs) -> Result<()> {
    // A wrong extension is found before the model is read.
    Format::to_write(&args.to, "--to")?;
    let (path, checkpoint) = args.model.load()?;
    let about = About::new(&checkpoint.encoding, &checkpoint.classes);
    let weights = Weights { model: checkpoint.model, params: checkpoint.state.params };
    export(&args.to, &weights, Some(&about))?;
    super::say(format!(
        "{}: {} parameters of {} in {} arrays",
        args.to.display(),
        weights.params.len(),
        path.display(),
        weights.model.table.specs().len()
    ))
}
